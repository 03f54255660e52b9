"""What is measured on one world model and one short game: dreaming, encoding, fitting, drawing windows, agents."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from measures import Workload, written_operations
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from dreamgym.agent import make_agent
from dreamgym.checkpoint import Dream, StartStates
from dreamgym.collect import GameSession, collect_random
from dreamgym.config import RunConfig
from dreamgym.evaluate import RandomPolicy
from dreamgym.fit import FitConfig, Fitter
from dreamgym.latents import encode_replay
from dreamgym.play_session import PlaySession
from dreamgym.real import make_game_env
from dreamgym.replay import Replay
from dreamgym.sb3 import DreamVecEnv, make_sb3_env
from dreamgym.simulator import DreamSimulator
from dreamgym.world_model import WorldModel, WorldModelConfig

_AT_ONCE = 256
"""Frames encoded or decoded in a call."""

_COLLECTED = 100
"""Real steps of a call."""

_UPDATES = 5
"""Updates of a call: its start has a cost of its own, which is little beside those of large networks alone."""


class Silent(BaseCallback):
    """A callback that does nothing, which is what collecting asks for."""

    def _on_step(self) -> bool:
        return True


class Bench:
    """A world model with random weights, which cost what trained ones do, and a short random game that it has seen.

    Args:
        config: whose networks, batches and agent.
        device: where they compute.
        steps: real steps of the game.
        bf16: whether products are made in bfloat16; None as the configuration says.

    Attributes:
        closing: ends the games when it is closed.
    """

    def __init__(self, config: RunConfig, device: torch.device, steps: int, bf16: bool | None = None) -> None:
        self.config, self.device = config, device
        self.closing = ExitStack()
        self._env = make_game_env(config.game, **config.codec.screen)
        self.closing.callback(self._env.close)
        self.replay = Replay(max(10 * steps, 10_000), config.codec.frame)
        self._session = GameSession(self._env, self.replay, lambda episode: episode)
        self._player = RandomPolicy(self._env.action_space, 0)
        collect_random(self._session, steps, self._player, progress=False)
        settings = WorldModelConfig(
            config.game,
            int(cast(gym.spaces.Discrete, self._env.action_space).n),
            codec=config.codec,
            dynamics=config.dynamics,
            bf16=config.bf16 if bf16 is None else bf16,
        )
        self.model = WorldModel(settings, seed=0).to(device)
        self._known = steps
        self.latents = encode_replay(self.model, self.replay)
        self.dream = Dream(self.model, self._starts(), config.dream.latent_stack)
        self._rng, self._generator = np.random.default_rng(0), torch.Generator().manual_seed(0)

    def real_game(self) -> Workload:
        """One game played at random."""
        return Workload(
            "real game",
            _COLLECTED,
            lambda: collect_random(self._session, _COLLECTED, self._player, progress=False),
        )

    def dream_steps(self, envs: int, name: str = "dream") -> Workload:
        """Steps of the simulator alone."""
        return Workload(f"{name}, {envs:,} at once", envs, self._stepper(envs), operations=self._written())

    def played(self) -> Workload:
        """Frames of a person's dream: steps, their uncertainty and their pictures, without what shows them."""
        session = PlaySession(self.dream, seed=0)
        self.closing.callback(session.close)
        return Workload("played by a person", 1, lambda: (session.tick(), session.view()), "frames")

    def encode(self, name: str = "encode") -> Workload:
        """Frames encoded."""
        frames = self.replay.frames_at(np.arange(_AT_ONCE) % self._known, self.model.frame_stack)
        return Workload(name, _AT_ONCE, lambda: self.model.encode(frames), "frames")

    def decode(self, name: str = "decode") -> Workload:
        """Latents decoded."""
        latents = torch.as_tensor(self.latents[np.arange(_AT_ONCE) % self._known]).long().to(self.device)
        return Workload(name, _AT_ONCE, lambda: self.model.decode(latents), "frames")

    def codec_training(self) -> Workload:
        """Frames through updates of the codec."""
        fitter = Fitter(self.model, replace(self.config.fit, unquantized_updates=0, interleaved=False))
        batch = self.config.fit.codec_batch_size

        def act() -> Any:
            return fitter.fit_codec(self.replay, _UPDATES, self._rng, self._generator, progress=False)

        return Workload(f"codec training, {batch} at once", _UPDATES * batch, act, "frames")

    def dynamics_training(
        self, fit: FitConfig | None = None, name: str = "dynamics training", updates: int = _UPDATES
    ) -> Workload:
        """Predicted steps (windows x time) through so many updates of the dynamics a call."""
        fit = fit or replace(self.config.fit, interleaved=False)
        predicted = fit.sequence_length - self.model.dynamics.looks_back
        each = f"{fit.dynamics_batch_size} x {predicted}"
        written = self._written()
        # Of each product its own, and two for the gradients of its factors.
        operations = None if written is None else 3 * written
        items = updates * fit.dynamics_batch_size * predicted
        return Workload(f"{name}, {each}", items, self._updater(fit, updates), "samples", operations)

    def agent(self) -> list[Workload]:
        """Rollouts through Stable-Baselines3, what they are made of, and updates; of PPO, which all presets know."""
        config = replace(self.config, algo="PPO")
        envs = config.dream.num_envs
        env = make_sb3_env(
            self.dream,
            envs,
            device=str(self.device),
            observation=config.observation,
            horizon=config.dream.horizon,
            seed=0,
        )
        agent = make_agent(config, env, 0, str(self.device))
        agent.learn(1)
        callback, steps = Silent(), config.ppo.n_steps * envs
        callback.init_callback(agent)
        return [
            Workload(
                f"SB3 rollouts in {envs} dreams",
                steps,
                lambda: agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, config.ppo.n_steps),
            ),
            Workload(f"simulator and policy alone, {envs} dreams", envs, _acting(agent, cast(DreamVecEnv, env))),
            Workload(f"SB3 updates of {steps:,} steps", steps, agent.train),
        ]

    def _written(self) -> float | None:
        """Operations of a step of one dream; None where dynamics look at as many cells as may change."""
        dynamics = self.model.dynamics
        return None if dynamics.takes_codes else written_operations(dynamics, self._stepper(1))

    def _starts(self) -> StartStates:
        windows = self.replay.sample_starts(256, self.config.dream.context, np.random.default_rng(0))
        latents = torch.as_tensor(self.latents)[torch.as_tensor(windows.indices)]
        mask, taken = torch.as_tensor(windows.mask), torch.as_tensor(self.replay.actions_at(windows.indices))
        elapsed = torch.as_tensor(self.replay.elapsed_at(windows.indices[:, 0]))
        return StartStates(latents, taken, mask, elapsed)

    def _stepper(self, envs: int) -> Any:
        stack = self.dream.latent_stack
        simulator = DreamSimulator(
            self.model, self.dream.starts, num_envs=envs, horizon=None, latent_stack=stack, seed=0
        )
        simulator.reset()
        actions = torch.zeros(envs, dtype=torch.int64, device=self.device)
        return lambda: simulator.step(actions)

    def _updater(self, fit: FitConfig, updates: int) -> Any:
        fitter = Fitter(self.model, fit)
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        latents = encode_replay(self.model, self.replay)
        return lambda: fitter.fit_dynamics(self.replay, latents, updates, rng, generator, progress=False)


def _acting(agent: Any, env: DreamVecEnv) -> Any:
    """A step of the env's simulator and the policy's answer to what it shows, with nothing between them."""
    simulator, dreaming = env.simulator, env.dream_env
    actions = torch.zeros(env.num_envs, dtype=torch.int64, device=simulator.device)
    shown = agent.policy.obs_to_tensor(env.reset())[0]
    assert dreaming.simulator is simulator

    @torch.no_grad()
    def act() -> Tensor:
        simulator.step(actions)
        return agent.policy(shown)[0]

    return act
