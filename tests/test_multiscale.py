"""What only the dynamics on two grids promise; the rest is in test_feed_forward.py."""

import pytest
import torch
from test_feed_forward import ACTIONS, CHANNELS, CODES, HEIGHT, WIDTH, assert_alike, fresh, tiny, window

from dreamgym.errors import ConfigError
from dreamgym.models.multiscale import MultiscaleConfig, MultiscaleDynamics
from dreamgym.world_model import WorldModelConfig


def blank(**settings) -> MultiscaleDynamics:
    """One without blocks in which everything is zero."""
    bare = {"memory": 1, "blocks": 0, "fine_blocks": 0, "embedding": CHANNELS}
    dynamics = fresh("multiscale", **{**bare, **settings})
    for parameter in dynamics.parameters():
        torch.nn.init.zeros_(parameter)
    return dynamics


@torch.no_grad()
def test_the_latent_head_sees_the_newest_code_of_every_cell():
    dynamics = fresh("multiscale", memory=3)
    latents, actions = window(dynamics, 2, 4)
    prediction, _ = dynamics.sequence(latents, actions, dynamics.initial_state(2))
    assert torch.equal(prediction.latent[:, :, -1].long(), latents)


@torch.no_grad()
def test_codes_are_shown_on_one_scale_wherever_the_codec_put_them():
    dynamics, codes = fresh("multiscale"), torch.randn(CODES, CHANNELS)
    dynamics.look_up(codes)
    shown = dynamics.codebook.clone()
    dynamics.look_up(7 * codes + 3)
    torch.testing.assert_close(dynamics.codebook, shown)
    assert not shown[-1].any() and float(shown[:-1].std()) == pytest.approx(1, abs=0.2)
    dynamics.look_up(torch.ones(CODES, CHANNELS))
    assert not dynamics.codebook.any()


@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_what_comes_back_from_the_coarse_grid_is_in_its_place(scale):
    dynamics = blank(scale=scale, fine=2 * CHANNELS, channels=CHANNELS * scale**2)
    for channel in range(CHANNELS):
        dynamics.embed.weight[channel, channel] = 1
        dynamics.inputs.weight[channel, channel, 1, 1] = 1
        # Each place of a square has a coarse channel of its own; it comes back in other channels than it went down in.
        for place in range(scale**2):
            coarse = place * CHANNELS + channel
            dynamics.down.weight[coarse, channel, place // scale, place % scale] = 1
            dynamics.up.weight[place * 2 * CHANNELS + CHANNELS + channel, coarse] = 1
    latents, actions = window(dynamics, 2, 3)
    prediction, _ = dynamics.sequence(latents, actions, dynamics.initial_state(2))
    features = dynamics.codebook[latents].movedim(-1, 2).relu()
    torch.testing.assert_close(prediction.latent[:, :, CHANNELS : 2 * CHANNELS], features)


@torch.no_grad()
def test_the_same_thing_moves_alike_everywhere_on_the_fine_grid():
    # A grid large enough that no border is seen, and nothing from the coarse one.
    dynamics = MultiscaleDynamics(tiny("multiscale").config, (CHANNELS, 14, 18), CODES, ACTIONS).eval()
    dynamics.look_up(torch.randn(CODES, CHANNELS))
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for parameter in dynamics.up.parameters():
        torch.nn.init.zeros_(parameter)
    latents = torch.zeros(2, 14, 18, dtype=torch.int64)
    latents[0, 6, 7] = latents[1, 7, 10] = 3
    prediction, _ = dynamics.step(latents, torch.zeros(2, dtype=torch.int64), dynamics.initial_state(2))
    one, other = prediction.latent
    torch.testing.assert_close(one[:, 5:8, 6:9], other[:, 6:9, 9:12], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one[:, 5:8, 6:9], one[:, 6:9, 9:12], atol=1e-2)


@torch.no_grad()
def test_in_training_some_latents_are_predicted_without_what_the_coarse_grid_found():
    dynamics = tiny("multiscale", coarse_dropout=0.5)
    latents, actions = window(dynamics, 32, 1)
    told = dynamics.step(latents[:, 0], actions[:, 0], dynamics.initial_state(32))[0]
    training, _ = dynamics.train().step(latents[:, 0], actions[:, 0], dynamics.initial_state(32))
    for parameter in dynamics.up.parameters():
        torch.nn.init.zeros_(parameter)
    alone = dynamics.eval().step(latents[:, 0], actions[:, 0], dynamics.initial_state(32))[0]
    like_told, like_alone = (
        torch.isclose(training.latent, other.latent, atol=1e-4).flatten(1).all(dim=1) for other in (told, alone)
    )
    assert 8 < like_told.sum() < 24 and torch.equal(like_alone, ~like_told)


def test_a_grid_with_an_odd_side_that_wraps_is_refused():
    with pytest.raises(ConfigError, match="wraps: expected a latent of even height and width, got 5x4"):
        MultiscaleDynamics(MultiscaleConfig(wraps=True, scale=1), (CHANNELS, 5, 4), CODES, ACTIONS)


def test_only_the_grid_of_an_aligned_codec_wraps():
    with pytest.raises(ConfigError, match="wraps: expected False where the codec is not aligned"):
        WorldModelConfig(dynamics=MultiscaleConfig(wraps=True))


@pytest.mark.parametrize("wraps", [True, False])
@torch.no_grad()
def test_what_crosses_an_edge_of_a_grid_that_wraps_comes_in_at_the_other(wraps):
    dynamics = MultiscaleDynamics(tiny("multiscale", wraps=wraps).config, (CHANNELS, 8, 12), CODES, ACTIONS).eval()
    dynamics.look_up(torch.randn(CODES, CHANNELS))
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.zeros_(dynamics.position)
    # Both on the grid of the turns and on the coarse one.
    moved = (2 * dynamics.config.scale, 4 * dynamics.config.scale)
    latents, uniforms = torch.randint(0, CODES, (3, 8, 12)), torch.rand(3, 8, 12)
    drawn = []
    for by in ((0, 0), moved):
        shown = latents.roll(by, (1, 2))
        prediction, _ = dynamics.step(shown, torch.zeros(3, dtype=torch.int64), dynamics.initial_state(3))
        latent = dynamics.draw_latent(prediction, uniforms.roll(by, (1, 2)))
        assert (latent != shown).any()
        drawn.append(latent.roll((-by[0], -by[1]), (1, 2)))
    assert torch.equal(*drawn) == wraps


@torch.no_grad()
def test_rewards_are_told_in_which_cell_a_thing_is_if_the_coarse_grid_does_not_know():
    rewards = []
    for channels in (0, 4):
        dynamics = tiny("multiscale", reward_channels=channels)
        for parameter in (*dynamics.down.parameters(), *dynamics.blocks.parameters()):
            torch.nn.init.zeros_(parameter)
        latents, actions = window(dynamics, 1, 1)
        here, there = latents[:, 0].clone(), latents[:, 0].clone()
        # The same two codes in one square of the coarse grid, the other way round.
        (here[0, 0, 0], here[0, 0, 1]), (there[0, 0, 0], there[0, 0, 1]) = (0, 1), (1, 0)
        state = dynamics.initial_state(1)
        rewards.append([dynamics.step(shown, actions[:, 0], state)[0].reward_logits for shown in (here, there)])
    (blind, as_blind), (told, otherwise) = rewards
    assert torch.equal(blind, as_blind) and not torch.allclose(told, otherwise)


@pytest.mark.parametrize("memory", [1, 3, 5])
@torch.no_grad()
def test_what_is_only_shown_is_remembered_as_if_it_had_been_predicted_from(memory):
    dynamics = tiny("multiscale", memory=memory)
    assert dynamics.looks_back == memory - 1
    (features, actions), rewards = window(dynamics, 2, 6), torch.tensor([[0, 0, 1.0, 0, 0, 0], [0, -1, 0, 0, 1, 0]])
    state = dynamics.initial_state(2, elapsed=torch.tensor([3, 30]))
    for part in (slice(0, 2), slice(2, 6)):
        shown = features[:, part], actions[:, part], state, rewards[:, part]
        _, followed = dynamics.sequence(*shown)
        state = dynamics.remember(*shown)
        assert_alike(state._replace(trunk=followed.trunk), followed)


@pytest.mark.parametrize("scale", [3, 4, 5])
def test_a_scale_that_does_not_divide_the_grid_is_refused(scale):
    with pytest.raises(ConfigError, match=rf"scale: expected a divisor of the latent's {HEIGHT}x{WIDTH}, got {scale}"):
        fresh("multiscale", scale=scale)


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": 0},
        {"fine": 0},
        {"fine_blocks": -1},
        {"embedding": 0},
        {"channels": 0},
        {"blocks": -1},
        {"scale": 0},
        {"clock": 0},
        {"clock": 129},
        {"cell_hidden": 0},
        {"least_change": 0.0},
        {"least_change": 1.0},
        {"least_chance": 1.0},
        {"coarse_dropout": 1.0},
        {"reward_hidden": 0},
        {"reward_channels": -1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        MultiscaleConfig(**settings)
