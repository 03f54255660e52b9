"""A tiny world model with random weights and valid start states: enough for everything that is not about learning."""

import copy
import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from dreamgym.checkpoint import Dream, StartStates, save_dream
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.multiscale import MultiscaleConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.world_model import DynamicsConfig, WorldModel, WorldModelConfig

torch.set_num_threads(1)

TINY_LSTM = ConvLSTMConfig(hidden=8, kernel=3, reward_hidden=16)
TINY_RESIDUAL = ResidualConfig(memory=3, channels=8, blocks=1, embedding=6, joint=8, reward_hidden=16)
TINY_MULTISCALE = MultiscaleConfig(
    memory=3, fine=4, embedding=6, channels=8, blocks=1, scale=2, cell_hidden=16, reward_hidden=16
)
COARSE_DYNAMICS = {
    "residual": TINY_RESIDUAL,
    "clock": dataclasses.replace(TINY_RESIDUAL, clock=12),
    "merged cells": dataclasses.replace(TINY_LSTM, patch=2),
    "two grids": TINY_MULTISCALE,
    "things": dataclasses.replace(TINY_MULTISCALE, memory=2, motion=True, step_hidden=8),
}
"""Dynamics on a grid of 6x6 whatever the latent's, which shall be 12x12: ``stages=3``."""


@functools.cache
def _tiny_world_model(frame_stack: int, stages: int, dynamics: DynamicsConfig) -> WorldModel:
    """A world model that has learned nothing, but whose encoder tells frames apart."""
    follows = getattr(dynamics, "motion", False)
    config = WorldModelConfig(
        game="Pong",
        num_actions=6,
        codec=VQVAEConfig(frame_stack=frame_stack, width=4, stages=stages, sprites=follows),
        dynamics=dynamics,
        bf16=False,
    )
    world_model = WorldModel(config, seed=0)
    rng = np.random.default_rng(0)
    frames = np.full((32, frame_stack, 96, 96), 80, dtype=np.uint8)
    for frame in frames:
        for _ in range(6):
            (top, left), (height, width) = rng.integers(0, 90, 2), rng.integers(2, 16, 2)
            frame[..., top : top + height, left : left + width] = rng.integers(0, 256)
    frames += rng.integers(0, 4, frames.shape, dtype=np.uint8)  # no two cells alike, so no two codes
    codec, images = world_model.codec, torch.from_numpy(frames)
    codec.encoder.train()
    with torch.no_grad():
        for _ in range(30):
            codec.encoder(images / 255)
    codec.eval()
    codec.seed_codebook(images, torch.Generator().manual_seed(0))
    if follows:
        # Every second code shows something.
        shows = torch.rand(codec.sprites.shape, generator=torch.Generator().manual_seed(0)) < 0.1
        codec.sprites.copy_(shows * (torch.arange(codec.num_codes) % 2)[:, None, None])
    return world_model


def make_tiny_dream(
    *,
    frame_stack: int = 1,
    latent_stack: int = 4,
    starts: int = 40,
    context: int = 8,
    end_logit: float = -50.0,
    stages: int = 4,
    dynamics: DynamicsConfig = TINY_LSTM,
) -> Dream:
    """A dream of Pong that has learned nothing.

    Every fourth context begins at an episode's start. Games end with log-odds ``end_logit``, so by default never.
    """
    world_model = copy.deepcopy(_tiny_world_model(frame_stack, stages, dynamics))
    assert world_model.dynamics.end_head is not None
    last = world_model.dynamics.end_head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, end_logit)
    rng = np.random.default_rng(0)
    shape = (starts, context, *world_model.codec.latent_shape)
    latents = rng.integers(0, world_model.codec.num_codes, shape, dtype=np.uint8)
    valid = np.ones((starts, context), dtype=np.bool_)
    for row in range(0, starts, 4):
        first = int(rng.integers(1, context))
        valid[row, :first] = False
        latents[row, :first] = latents[row, first]
    actions = rng.integers(0, 6, (starts, context), dtype=np.int64)
    elapsed = rng.integers(0, 40, starts)
    start_states = StartStates(*map(torch.from_numpy, (latents, actions, valid, elapsed)))
    return Dream(world_model, start_states, latent_stack, {"game": "Pong", "horizon": 25, "finished": True})


@pytest.fixture
def tiny_dream() -> Dream:
    """A fresh tiny dream in memory."""
    return make_tiny_dream()


@pytest.fixture(params=["recurrent", *COARSE_DYNAMICS])
def any_dream(request: pytest.FixtureRequest) -> Dream:
    """A fresh tiny dream with dynamics of every kind, on the latent's grid or on a coarser one."""
    if request.param == "recurrent":
        return make_tiny_dream()
    return make_tiny_dream(stages=3, dynamics=COARSE_DYNAMICS[request.param])


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that holds a tiny dream."""
    folder = tmp_path_factory.mktemp("runs") / "pong"
    save_dream(folder, make_tiny_dream())
    return folder


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smallest preset: the one in $DREAMGYM_RUN if it is one, else trained here, once for all."""
    from dreamgym.config import make_config
    from dreamgym.loop import train
    from dreamgym.run_folder import RunFolder

    config = make_config("smoke")
    given = RunFolder(os.environ.get("DREAMGYM_RUN", ""))
    if given.config_file.is_file() and given.config() == config and given.progress().round == config.rounds:
        return given.path
    base = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist have folders of their own below a shared one; the first to come trains for all.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    with FileLock(f"{folder}.lock"):
        if RunFolder(folder).progress().round < config.rounds:
            train(config, folder, device="cpu", progress=False)
    return folder
