"""What only the dynamics on two grids promise; the rest is in test_feed_forward.py."""

import pytest
import torch
from test_feed_forward import ACTIONS, CHANNELS, CODES, HEIGHT, WIDTH, assert_alike, fresh, tiny, window

from dreamgym.errors import ConfigError
from dreamgym.models.multiscale import MultiscaleConfig, MultiscaleDynamics


def blank(**settings) -> MultiscaleDynamics:
    """One without blocks in which everything is zero and the latent head has as many outputs as features."""
    bare = {"memory": 1, "blocks": 0, "fine_blocks": 0, "embedding": CHANNELS, "joint": CHANNELS}
    dynamics = fresh("multiscale", **{**bare, **settings})
    for parameter in dynamics.parameters():
        torch.nn.init.zeros_(parameter)
    return dynamics


@torch.no_grad()
def test_every_cell_sees_its_newest_features_in_its_place():
    dynamics = blank()
    for channel in range(CHANNELS):
        dynamics.embed.weight[channel, channel] = 1
        dynamics.latent_head.weight[channel, dynamics.config.fine + channel] = 1
    features, actions = window(2, 3)
    prediction, _ = dynamics.sequence(features, actions, dynamics.initial_state(2))
    assert torch.equal(prediction.latent, features)


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
        dynamics.latent_head.weight[channel, CHANNELS + channel] = 1
    features, actions = window(2, 3)
    prediction, _ = dynamics.sequence(features, actions, dynamics.initial_state(2))
    assert torch.equal(prediction.latent, features.relu())


@torch.no_grad()
def test_the_same_thing_moves_alike_everywhere_on_the_fine_grid():
    # A grid large enough that no border is seen, and nothing from the coarse one.
    dynamics = MultiscaleDynamics(tiny("multiscale").config, (CHANNELS, 14, 18), CODES, ACTIONS).eval()
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for parameter in dynamics.up.parameters():
        torch.nn.init.zeros_(parameter)
    features = torch.zeros(2, CHANNELS, 14, 18)
    features[0, :, 6, 7] = features[1, :, 7, 10] = torch.randn(CHANNELS)
    prediction, _ = dynamics.step(features, torch.zeros(2, dtype=torch.int64), dynamics.initial_state(2))
    one, other = prediction.latent
    torch.testing.assert_close(one[:, 5:8, 6:9], other[:, 6:9, 9:12], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one[:, 5:8, 6:9], one[:, 6:9, 9:12], atol=1e-2)


@pytest.mark.parametrize("memory", [1, 3, 5])
@torch.no_grad()
def test_what_is_only_shown_is_remembered_as_if_it_had_been_predicted_from(memory):
    dynamics = tiny("multiscale", memory=memory)
    assert dynamics.looks_back == memory - 1
    (features, actions), rewards = window(2, 6), torch.tensor([[0, 0, 1.0, 0, 0, 0], [0, -1, 0, 0, 1, 0]])
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


def test_a_latent_too_small_for_groups_is_refused():
    with pytest.raises(ConfigError, match="joint: expected latents of at least 2x2 cells, got 1x4"):
        MultiscaleDynamics(MultiscaleConfig(scale=1), (CHANNELS, 1, 4), CODES, ACTIONS)


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
        {"joint": 0},
        {"least_chance": 1.0},
        {"reward_hidden": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        MultiscaleConfig(**settings)
