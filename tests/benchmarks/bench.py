"""How fast this machine is and how fast the dream is on it: ``make bench``.

Every number is a rate in items a second, beside the machine's rate of matrix products, by which times are compared.
Networks have random weights, which cost the same as trained ones; experience is a short random game.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from dreamgym.agent import make_agent
from dreamgym.checkpoint import Dream, StartStates
from dreamgym.collect import GameSession, collect_random
from dreamgym.config import PRESETS, RunConfig, make_config
from dreamgym.device import resolve_device
from dreamgym.evaluate import RandomPolicy
from dreamgym.fit import Fitter
from dreamgym.hardware import describe_machine, matmul_rates
from dreamgym.latents import encode_replay
from dreamgym.play_session import PlaySession
from dreamgym.real import make_game_env
from dreamgym.replay import Replay
from dreamgym.sb3 import make_sb3_env
from dreamgym.simulator import DreamSimulator
from dreamgym.world_model import WorldModel, WorldModelConfig


@dataclass(frozen=True)
class Args:
    """Measure the speed of this machine and of the dream on it."""

    preset: str = "laptop"
    """whose networks and batch sizes: smoke, quick, laptop, gpu or paper"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>"""
    envs: tuple[int, ...] = (1, 16, 64, 256)
    """numbers of dreams stepped at once"""
    seconds: float = 1.0
    """least time spent on each number"""
    steps: int = 1_000
    """real steps of experience"""
    out: Path = Path("build/bench.json")
    """where the numbers go as JSON"""


class Bench:
    """What is measured, on one world model and one short game."""

    def __init__(self, config: RunConfig, device: torch.device, args: Args) -> None:
        self.config = config
        self.device = device
        self.args = args
        env = make_game_env(config.game, **config.codec.screen)
        self.replay = Replay(args.steps, config.codec.frame)
        session = GameSession(env, self.replay, lambda episode: episode)
        started = time.perf_counter()
        collect_random(session, args.steps, RandomPolicy(env.action_space, 0), progress=False)
        self.collected = args.steps / (time.perf_counter() - started)
        actions = int(getattr(env.action_space, "n", 0))
        env.close()
        settings = WorldModelConfig(
            config.game, actions, codec=config.codec, dynamics=config.dynamics, bf16=config.bf16
        )
        self.model = WorldModel(settings, seed=0).to(device)
        windows = self.replay.sample_starts(256, config.dream.context, np.random.default_rng(0))
        latents = torch.as_tensor(encode_replay(self.model, self.replay))[torch.as_tensor(windows.indices)]
        mask, taken = torch.as_tensor(windows.mask), torch.as_tensor(self.replay.actions_at(windows.indices))
        elapsed = torch.as_tensor(self.replay.elapsed_at(windows.indices[:, 0]))
        self.dream = Dream(self.model, StartStates(latents, taken, mask, elapsed), config.dream.latent_stack)

    def rate(self, items: int, act: Callable[[], Any]) -> float:
        """Items a second of a function that handles so many a call, after one call of warm-up."""
        act()
        self._wait()
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < self.args.seconds:
            act()
            self._wait()
            calls += 1
        return items * calls / elapsed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def dream_step(self, envs: int) -> float:
        """Steps of the simulator alone."""
        simulator = DreamSimulator(self.model, self.dream.starts, num_envs=envs, horizon=None, seed=0)
        simulator.reset()
        actions = torch.zeros(envs, dtype=torch.int64, device=self.device)
        return self.rate(envs, lambda: simulator.step(actions))

    def played(self) -> float:
        """Frames of a person's dream: steps, their uncertainty and their pictures, without what shows them."""
        session = PlaySession(self.dream, seed=0)
        rate = self.rate(1, lambda: (session.tick(), session.view()))
        session.close()
        return rate

    def encode(self) -> float:
        """Frames encoded, 256 at once."""
        frames = self.replay.frames_at(np.arange(256), self.model.frame_stack)
        return self.rate(256, lambda: self.model.encode(frames))

    def decode(self) -> float:
        """Latents decoded, 256 at once."""
        latents = self.model.encode(self.replay.frames_at(np.arange(256), self.model.frame_stack))
        return self.rate(256, lambda: self.model.decode(latents))

    def fit(self) -> dict[str, float]:
        """Frames through an update of the codec, and of the dynamics (batch x steps)."""
        fit = replace(self.config.fit, unquantized_updates=0, interleaved=False)
        fitter = Fitter(self.model, fit)
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        latents = encode_replay(self.model, self.replay)
        # Several updates a call: drawing windows has a cost of its own at the start of each.
        updates = 5
        return {
            "codec training, frames": self.rate(
                updates * fit.codec_batch_size,
                lambda: fitter.fit_codec(self.replay, updates, rng, generator, progress=False),
            ),
            "dynamics training, frames": self.rate(
                updates * fit.dynamics_batch_size * (fit.sequence_length - self.model.dynamics.looks_back),
                lambda: fitter.fit_dynamics(self.replay, latents, updates, rng, generator, progress=False),
            ),
        }

    def agent(self) -> float:
        """Imagined steps of the preset's agent: rollouts through Stable-Baselines3 and its updates."""
        config = self.config
        env = make_sb3_env(
            self.dream,
            config.dream.num_envs,
            device=str(self.device),
            observation=config.observation,
            horizon=config.dream.horizon,
            seed=0,
        )
        agent = make_agent(config, env, 0, str(self.device))
        steps = config.ppo.n_steps * config.dream.num_envs
        return self.rate(steps, lambda: agent.learn(steps, reset_num_timesteps=False))


def main(args: Args) -> None:
    """Measure, print a table, write the JSON."""
    device = resolve_device(args.device)
    matmul = matmul_rates(device)
    machine = describe_machine(device)
    print(f"device {device}: {machine}\npreset {args.preset} of {', '.join(PRESETS)}")
    config = make_config(args.preset)
    bench = Bench(config, device, args)
    rates = {"real game, steps": bench.collected}
    rates |= {f"dream, {envs} at once, steps": bench.dream_step(envs) for envs in args.envs}
    rates["played by a person, frames"] = bench.played()
    rates |= {"encode, frames": bench.encode(), "decode, frames": bench.decode()}
    rates |= bench.fit()
    rates[f"{config.algo} in {config.dream.num_envs} dreams, steps"] = bench.agent()
    for name, value in matmul.items():
        print(f"{f'matrix product 2048^3, {name}':<36}{value:>12,.0f} GFLOP/s")
    for name, value in rates.items():
        print(f"{name:<36}{value:>12,.0f} /s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured = {
        "machine": machine,
        "device": str(device),
        "preset": args.preset,
        "matmul_gflops": matmul,
        "rates": rates,
    }
    args.out.write_text(json.dumps(measured, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
