"""What only the residual dynamics promise; the rest is in test_feed_forward.py."""

import pytest
import torch
from test_feed_forward import CHANNELS, CODES, HEIGHT, WIDTH, fresh

from dreamgym.errors import ConfigError
from dreamgym.models.layers import parameter_count
from dreamgym.models.residual import ResidualConfig, ResidualDynamics
from dreamgym.world_model import WorldModel, WorldModelConfig


@torch.no_grad()
def test_every_cell_is_predicted_in_its_place():
    dynamics = fresh("residual", memory=1, blocks=0, channels=1, embedding=4 * CHANNELS)
    for layer in (dynamics.embed, dynamics.latent_head):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    # What the four cells of a patch show goes side by side into the patch's channels, and from there to the same cells.
    for code in range(CHANNELS):
        for cell in range(4):
            dynamics.embed.weight[4 * code + cell, code, cell // 2, cell % 2] = 1
            dynamics.latent_head.weight[cell * CODES + code, 1 + 4 * code + cell] = 1
    latents = torch.randint(0, CHANNELS, (2, 3, HEIGHT, WIDTH))
    features = torch.nn.functional.one_hot(latents, CHANNELS).float().movedim(-1, 2)
    prediction, _ = dynamics.sequence(features, torch.zeros(2, 3, dtype=torch.int64), dynamics.initial_state(2))
    assert prediction.latent.shape == (2, 3, CODES, HEIGHT, WIDTH)
    assert torch.equal(prediction.latent.argmax(2), latents)


@pytest.mark.parametrize("patch", [3, 4, 5])
def test_a_patch_that_does_not_divide_the_grid_is_refused(patch):
    with pytest.raises(ConfigError, match=rf"divisor of the latent's {HEIGHT}x{WIDTH}, got {patch}"):
        fresh("residual", patch=patch)


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": 0},
        {"channels": 0},
        {"embedding": 0},
        {"patch": 0},
        {"reward_hidden": 0},
        {"blocks": -1},
        {"clock": -1},
        {"clock": 129},
        {"joint": -1},
        {"least_chance": 1.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ResidualConfig(**settings)


def test_the_default_dynamics_are_less_than_a_quarter_of_the_papers():
    dynamics = ResidualDynamics(ResidualConfig(), (32, 12, 12), 64, 6)
    assert parameter_count(dynamics.embed) == 32 * 64 * 4 + 64
    assert parameter_count(dynamics.inputs) == 4 * (64 + 6) * 128 * 9 + 128
    assert parameter_count(dynamics.blocks) == 3 * 2 * (128 * 128 * 9 + 128)
    assert parameter_count(dynamics.latent_head) == (128 + 64) * 4 * 64 + 4 * 64
    total = parameter_count(dynamics) - parameter_count(dynamics.end_head)
    papers = WorldModel(WorldModelConfig()).parameter_counts()["dynamics"]
    assert total == 1_420_259 < papers / 4
