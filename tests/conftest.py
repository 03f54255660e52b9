"""A tiny world model with random weights and valid start states: enough for everything that is not about learning."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dreamgym.checkpoint import Dream, StartStates, save_dream
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.world_model import WorldModel, WorldModelConfig

torch.set_num_threads(1)


def make_tiny_dream(
    *, frame_stack: int = 1, latent_stack: int = 4, starts: int = 40, context: int = 8, end_logit: float = -50.0
) -> Dream:
    """A dream of Pong that has learned nothing.

    Every fourth context begins at an episode's start. Games end with log-odds ``end_logit``, so by default never.
    """
    config = WorldModelConfig(
        game="Pong",
        num_actions=6,
        codec=VQVAEConfig(frame_stack=frame_stack, width=4),
        dynamics=ConvLSTMConfig(hidden=8, kernel=3, reward_hidden=16),
        bf16=False,
    )
    world_model = WorldModel(config, seed=0)
    assert world_model.dynamics.end_head is not None
    last = world_model.dynamics.end_head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, end_logit)
    rng = np.random.default_rng(0)
    latents = rng.integers(0, world_model.codec.num_codes, (starts, context, 6, 6), dtype=np.uint8)
    valid = np.ones((starts, context), dtype=np.bool_)
    for row in range(0, starts, 4):
        first = int(rng.integers(1, context))
        valid[row, :first] = False
        latents[row, :first] = latents[row, first]
    actions = rng.integers(0, 6, (starts, context), dtype=np.int64)
    start_states = StartStates(torch.from_numpy(latents), torch.from_numpy(actions), torch.from_numpy(valid))
    return Dream(world_model, start_states, latent_stack, {"game": "Pong", "horizon": 25, "finished": True})


@pytest.fixture
def tiny_dream() -> Dream:
    """A fresh tiny dream in memory."""
    return make_tiny_dream()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that holds a tiny dream."""
    folder = tmp_path_factory.mktemp("runs") / "pong"
    save_dream(folder, make_tiny_dream())
    return folder
