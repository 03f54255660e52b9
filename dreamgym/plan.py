"""What a run would take on this machine, measured before it begins: ``dreamgym plan``.

Every phase of :mod:`dreamgym.loop` is a number of things that take equally long: real steps, updates, frames to encode,
imagined steps. A few of each are done on a short random game and networks that have just begun to learn; how many a run
does its configuration says.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch.utils.flop_counter import FlopCounterMode

from dreamgym.acts import real_acts
from dreamgym.agent import make_agent
from dreamgym.checkpoint import Dream, StartStates
from dreamgym.collect import GameSession, collect_random
from dreamgym.config import RunConfig, per_round
from dreamgym.evaluate import RandomPolicy
from dreamgym.fit import Fitter
from dreamgym.hardware import describe_machine, matmul_rates, peak_memory
from dreamgym.latents import encode_replay
from dreamgym.loop import game_actions
from dreamgym.models.candidates import CandidateHead
from dreamgym.real import make_game_env
from dreamgym.real_env import make_real_env
from dreamgym.replay import Replay
from dreamgym.sb3 import is_off_policy, make_sb3_env
from dreamgym.simulator import DreamSimulator
from dreamgym.world_model import WorldModel, WorldModelConfig

_FEWEST = 1_000
"""Real steps at least that everything else is measured on."""

_MOMENTS = 64
"""Latents from which it is told how many cells change."""

_LOOKED_AT = 3.0
"""Cells that dynamics look at, once they have learned, for one that changes: in Pong 24 for 8."""

_CHUNK = 512
"""Frames that are encoded at once."""

_EVENTS = 1 + 1 / 2 + 1 / 8
"""Windows on which fidelity is measured, with those for events, for one drawn evenly (:mod:`dreamgym.held_out`)."""

_HELD_OUT = 0.05
"""Share of a run's real episodes that is kept for measuring, at least (:mod:`dreamgym.held_out`)."""


@dataclass(frozen=True)
class Cost:
    """What one kind of work takes in all.

    Attributes:
        phase: of the loop: collect, fit, train or evaluate.
        unit: what there is so many of, in words.
        count: how many in the whole run.
        seconds_each: wall time of one.
        flop_each: floating-point operations of one's convolutions and matrix products.
    """

    phase: str
    unit: str
    count: int
    seconds_each: float
    flop_each: float = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of all."""
        return self.count * self.seconds_each

    @property
    def flop(self) -> float:
        """Floating-point operations of all."""
        return self.count * self.flop_each


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        machine: what was measured on.
        matmul_gflops: its rate of 2048^3 matrix products by type, GFLOP/s.
        costs: kind by kind, in the order of the loop.
        memory: most bytes that the process will hold, a graphics card's aside.
        disk: bytes of the finished run's folder.
    """

    machine: str
    matmul_gflops: dict[str, float]
    costs: tuple[Cost, ...]
    memory: float
    disk: float

    @property
    def seconds(self) -> float:
        """Wall time of all phases."""
        return sum(cost.seconds for cost in self.costs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the fields, and the sums of every phase."""
        phases: dict[str, dict[str, float]] = {}
        for cost in self.costs:
            sums = phases.setdefault(cost.phase, {"seconds": 0.0, "flop": 0.0})
            sums["seconds"] += cost.seconds
            sums["flop"] += cost.flop
        return {
            "machine": self.machine,
            "matmul_gflops": self.matmul_gflops,
            "costs": [asdict(cost) | {"seconds": cost.seconds, "flop": cost.flop} for cost in self.costs],
            "phases": phases,
            "seconds": self.seconds,
            "memory": self.memory,
            "disk": self.disk,
        }

    def table(self) -> str:
        """For people."""
        lines = [
            f"{self.machine}; matrix products "
            + ", ".join(f"{rate:,.0f} GFLOP/s {name}" for name, rate in self.matmul_gflops.items()),
            f"{'phase':<10}{'what':<28}{'how many':>12}{'a second':>12}{'minutes':>10}{'TFLOP':>12}",
        ]
        lines += [
            f"{cost.phase:<10}{cost.unit:<28}{cost.count:>12,}{1 / cost.seconds_each:>12,.1f}{cost.seconds / 60:>10.1f}"
            f"{cost.flop / 1e12:>12,.1f}"
            for cost in self.costs
            if cost.count
        ]
        total = sum(cost.flop for cost in self.costs)
        lines.append(f"{'together':<62}{self.seconds / 60:>10.1f}{total / 1e12:>12,.1f}")
        lines.append(f"memory {self.memory / 1e9:.1f} GB, disk {self.disk / 1e9:.2f} GB")
        return "\n".join(lines)


def plan(config: RunConfig, device: torch.device, seconds: float = 20.0) -> Plan:
    """Measure this machine, and multiply.

    Real episodes are counted as long as those of random play, which is all that is known of a game before it is played.

    Args:
        config: of the run.
        device: where networks would compute.
        seconds: for which to measure, about.

    Returns:
        What the run would take.
    """
    rates = matmul_rates(device)
    probe = _Probe(config, device)
    costs = _costs(probe, seconds)
    held_out = _counts(config)["held_out"]
    return Plan(describe_machine(device), rates, costs, probe.memory(), probe.disk(held_out))


def count_operations(config: RunConfig, model: WorldModel, replay: Replay) -> dict[str, float]:
    """Floating-point operations of a run's phases: of its own networks, one call of each kind, multiplied.

    Args:
        config: of the run.
        model: its world model; stays as it is.
        replay: some real experience, which is looked at but not played on; stays as it is but for its visits.

    Returns:
        Operations of the convolutions and matrix products of all rounds, by phase.
    """
    phases: dict[str, float] = {}
    for cost in _costs(_Probe(config, model.device, copy.deepcopy(model), replay), 0.0):
        phases[cost.phase] = phases.get(cost.phase, 0.0) + cost.flop
    return phases


def _costs(probe: "_Probe", seconds: float) -> tuple[Cost, ...]:
    """What every kind of work takes; for 0 seconds operations are counted, and no times measured."""
    config = probe.config
    random_step = probe.collect(0.15 * seconds)
    codec = probe.codec(0.1 * seconds)
    encode = probe.encode(0.1 * seconds)
    dynamics = probe.dynamics(0.35 * seconds)
    imagined = probe.train(0.2 * seconds)
    alone = probe.play(1, 0.05 * seconds)
    together = probe.play(config.evaluate.num_envs, 0.05 * seconds)
    counts = _counts(config)
    length = probe.episode_length
    dreamt = probe.dream_step(0.5 if seconds else 0.0)
    # A step alone, and an imagined one but for the dream's part: the policy's update.
    share, off = 1.0, config.off_policy
    if is_off_policy(config.algo):
        share = off.real_updates * config.dream.num_envs / off.imagined_updates
    learned = tuple(
        step + share * max(0.0, taught - dreamed) for step, taught, dreamed in zip(alone, imagined, dreamt, strict=True)
    )
    return (
        Cost("collect", "random real steps", config.collect.first_steps, *random_step),
        Cost("collect", "real steps of the agent", counts["collected"], *alone),
        Cost("collect", "real steps it learns from", counts["learned"], *learned),
        Cost("fit", "updates of the codec", counts["codec"], *codec),
        Cost("fit", "frames encoded", counts["encoded"], *encode),
        Cost("fit", "updates of the dynamics", counts["dynamics"], *dynamics),
        Cost("train", "frames of start states", counts["starts"], *encode),
        Cost("train", "imagined steps", counts["imagined"], *imagined),
        Cost("evaluate", "real steps of the agent", round(counts["episodes"] * length), *together),
        Cost("evaluate", "random real steps", round(config.evaluate.final_episodes * length), *random_step),
        Cost("evaluate", "imagined steps", counts["measured"], *dreamt),
    )


def _counts(config: RunConfig) -> dict[str, int]:
    """How much of everything a run does; what takes it seconds alone, as choosing codes, is left out."""
    measure, rounds = config.evaluate, range(config.rounds)
    real = [config.interactions_by(index) for index in rounds]
    updates = [per_round(config.codec_updates, index) for index in rounds]
    learned = sum(config.collected(index) for index in rounds if config.learns_in_game(index))
    # A codec that was fitted again makes all latents anew, one that was not only those of new frames.
    encoded = [
        real[index] if index == 0 or updates[index] else config.collected(index)
        for index in rounds
        if not config.fit.interleaved
    ]
    scored = [index for index in rounds if index == config.rounds - 1 or not (index + 1) % measure.every]
    # Every phase that dreams encodes the moments that dreams begin with.
    begun = [min(real[index], config.dream.start_states * config.dream.context) for index in rounds]
    # The dream that is handed on begins in others than the last round's where those are of its own experience.
    starts = sum(begun[index] * (2 + (index in scored)) for index in rounds) + begun[-1]
    starts += begun[-1] if config.newest_share(config.rounds - 1) else 0
    fidelity = _EVENTS * measure.fidelity_starts * (config.dream.context + measure.fidelity_horizon)
    # Before the first scored round there are no episodes to measure fidelity on.
    judged = (config.rounds - scored[0]) if measure.record_episodes else 0
    return {
        "collected": config.interactions - config.collect.first_steps - learned,
        "learned": learned,
        "codec": sum(updates),
        "encoded": sum(encoded),
        "starts": starts,
        "dynamics": sum(per_round(config.dynamics_updates, index) for index in rounds),
        "imagined": sum(per_round(config.imagined_steps, index) for index in rounds),
        "episodes": sum(measure.final_episodes if i == config.rounds - 1 else measure.episodes for i in scored),
        "measured": round(len(scored) * measure.dream_episodes * config.dream.horizon + judged * fidelity),
        "held_out": len(scored) * measure.record_episodes,
    }


class _Probe:
    """A short game, and networks that have just begun to learn from it; or a run's own experience and networks."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        model: WorldModel | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.config, self.device = config, device
        self._young = model is None
        self.game: dict[str, Any] = {
            "sticky_actions": config.game_options.sticky_actions,
            "noop_max": config.game_options.noop_max,
        }
        env = make_game_env(config.game, stack=1, **config.codec.screen, **self.game)
        actions = game_actions(config)
        count = int(actions.n) if isinstance(actions, spaces.Discrete) else None
        shape = actions.shape or ()
        capacity = max(20_000, config.collect.first_steps)
        frame = config.codec.frame
        empty = Replay(capacity, frame) if count else Replay(capacity, frame, shape, np.float32)
        self.replay = empty if replay is None else replay
        self._session = GameSession(env, self.replay, lambda episode: episode)
        self._policy = RandomPolicy(env.action_space, 0)
        self._env = env
        settings = WorldModelConfig(
            game=config.game,
            num_actions=math.prod(shape) if count is None else int(count),
            continuous=count is None,
            codec=config.codec,
            dynamics=config.dynamics,
            bf16=config.bf16,
        )
        self.model = WorldModel(settings, seed=0).to(device) if model is None else model
        self._metadata: dict[str, Any] = {"game": config.game, "horizon": config.dream.horizon}
        if isinstance(actions, spaces.Box):
            self._metadata |= {"action_low": actions.low.tolist(), "action_high": actions.high.tolist()}
        self._rng, self._generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        # Seeding the codebook belongs to an update that is done once.
        quantized = replace(config.fit, unquantized_updates=0, settled_updates=0)
        self._fitter = Fitter(self.model, quantized)
        self._dream: Dream | None = None
        self._latents: npt.NDArray[np.uint8] | None = None
        self._agent: Any = None

    @property
    def episode_length(self) -> float:
        """Steps of an episode of random play; all that were seen where none has ended."""
        ends = int(self.replay.ends_at(np.arange(len(self.replay))).sum())
        return len(self.replay) / max(1, ends)

    def collect(self, seconds: float) -> tuple[float, float]:
        """A step of random play, of which there are enough in a run's own experience."""
        if not self._young:
            self._env.close()
            return 0.0, 0.0
        least = max(_FEWEST, self.config.fit.sequence_length + 2, self.config.dream.context)
        steps, started = 0, time.perf_counter()
        while steps < least or (time.perf_counter() - started < seconds and steps < self.replay.capacity):
            collect_random(self._session, 100, self._policy, progress=False)
            steps += 100
        each = (time.perf_counter() - started) / steps
        self._env.close()
        return each, 0.0

    def codec(self, seconds: float) -> tuple[float, float]:
        """An update of the codec."""
        if self._young:
            self._fitter.prepare_codec(self.replay)
        found = self._measure(
            seconds,
            lambda: self._fitter._codec_update(self.replay, self._rng, self._generator),  # pyright: ignore[reportPrivateUsage]
            1,
        )
        if not self._young:
            return found
        # After so few updates all cells would have the same code, and nothing would ever change.
        self.model.codec.settle(self._frames(), self._generator)
        if self.config.codec.sprites:
            self.model.codec.learn_sprites(self._frames())
        return found

    def _frames(self) -> Iterator[torch.Tensor]:
        """Batches of frames, evenly spaced."""
        chosen = np.linspace(0, len(self.replay) - 1, _FEWEST).astype(np.int64)
        for part in np.array_split(chosen, 4):
            yield torch.as_tensor(self.replay.frames_at(part, self.model.frame_stack)).to(self.device)

    def encode(self, seconds: float) -> tuple[float, float]:
        """A frame encoded."""
        frames = self.replay.frames_at(np.arange(_CHUNK) % len(self.replay), self.model.frame_stack)
        return self._measure(seconds, lambda: self.model.encode(frames, _CHUNK), _CHUNK)

    def dynamics(self, seconds: float) -> tuple[float, float]:
        """An update of the dynamics, once they know how few cells may change."""
        fitter, updates = self._fitter, 10 if seconds else 1
        if self.config.fit.interleaved:

            def act() -> Any:
                return fitter.fit(self.replay, 0, updates, self._rng, self._generator, progress=False)

        else:
            latents = self._encoded()

            def act() -> Any:
                return fitter.fit_dynamics(self.replay, latents, updates, self._rng, self._generator, progress=False)

        if self._young:
            act()
            self._mature()
        return self._measure(seconds, act, updates)

    def _mature(self) -> None:
        """Let as few cells be looked at as a gate does that has learned which may change.

        A young one lets nearly all in, and what draws them takes ten times as long as it will for most of a run.
        """
        head = getattr(self.model.dynamics, "latent_head", None)
        if not isinstance(head, CandidateHead):
            return
        latents = torch.as_tensor(self._encoded()[-_MOMENTS - 1 :]).long().to(self.device)
        changes = float((latents[1:] != latents[:-1]).float().mean())
        state = self.model.initial_state(_MOMENTS)
        actions = real_acts(self.model, self.replay, np.arange(len(self.replay))[-_MOMENTS - 1 : -1])
        prediction, _ = self.model.step(latents[:-1], actions, state)
        chances = prediction.latent[:, -2].flatten().float()
        head.threshold = float(chances.quantile(max(0.0, 1 - _LOOKED_AT * changes)))

    def _encoded(self) -> npt.NDArray[np.uint8]:
        """The latents of all that was played."""
        if self._latents is None:
            self._latents = encode_replay(self.model, self.replay)
        return self._latents

    def train(self, seconds: float) -> tuple[float, float]:
        """An imagined step of the agent, its updates included."""
        config = self.config
        env = make_sb3_env(
            self._opened(),
            config.dream.num_envs,
            device=str(self.device),
            observation=config.observation,
            horizon=config.dream.horizon,
            reward=config.dream.reward,
            temperature=config.dream.temperature,
            seed=0,
        )
        self._agent = agent = make_agent(config, env, 0, str(self.device))
        steps = config.ppo.n_steps * config.dream.num_envs
        # Algorithms that begin with random actions learn from then on.
        begin = getattr(agent, "learning_starts", 0)
        if begin:
            agent.learn(begin + 1, reset_num_timesteps=False)
        return self._measure(seconds, lambda: agent.learn(steps, reset_num_timesteps=False), steps)

    def play(self, envs: int, seconds: float) -> tuple[float, float]:
        """A step of the agent in the real game, so many of them side by side."""
        config = self.config
        real = make_real_env(self._opened(), envs, device=str(self.device), observation=config.observation, **self.game)
        observation, _ = real.reset(seed=0)

        def act() -> None:
            nonlocal observation
            actions, _ = self._agent.predict(observation)
            observation = real.step(actions)[0]

        try:
            return self._measure(seconds, act, envs)
        finally:
            real.close()

    def dream_step(self, seconds: float) -> tuple[float, float]:
        """An imagined step, of as many as fidelity is measured on at once."""
        starts = self._opened().starts
        count = self.config.dream.num_envs
        simulator = DreamSimulator(self.model, starts, num_envs=count, horizon=None, seed=0)
        simulator.reset()
        shape = (count, self.model.num_actions) if self.model.config.continuous else (count,)
        kind = torch.float32 if self.model.config.continuous else torch.int64
        actions = torch.zeros(shape, dtype=kind, device=self.device)
        return self._measure(seconds, lambda: simulator.step(actions), count)

    def memory(self) -> float:
        """Bytes, without a graphics card's: the most held so far (0 on Windows), and the rest of the experience."""
        latent = math.prod(self.model.codec.latent_shape)
        more = self.config.interactions - len(self.replay)
        return peak_memory() + max(0, more) * math.prod(self.config.codec.frame) + self.config.interactions * latent

    def disk(self, held_out: int) -> float:
        """Bytes of a finished run: experience as it is packed, and the weights of the last two rounds.

        Args:
            held_out: real episodes kept for measuring, at least.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            self.replay.save(path)
            packed = sum(file.stat().st_size for file in path.iterdir()) / len(self.replay)
            state = {"world_model": self.model.state_dict(), "fitter": self._fitter.state_dict()}
            torch.save(state, path / "model.pt")
            torch.save(self._agent.get_parameters(), path / "policy.pt")
            weights = sum((path / name).stat().st_size for name in ("model.pt", "policy.pt"))
        kept = max(held_out * self.episode_length, _HELD_OUT * self.config.interactions) if held_out else 0
        # The dream and the agent's zip are once more what the checkpoints hold.
        return packed * (self.config.interactions + kept) + 3 * weights

    def _opened(self) -> Dream:
        """A dream of what was learned so far."""
        if self._dream is None:
            windows = self.replay.sample_starts(256, self.config.dream.context, self._rng)
            latents = torch.as_tensor(self._encoded())[torch.as_tensor(windows.indices)]
            actions, mask = real_acts(self.model, self.replay, windows.indices).cpu(), torch.as_tensor(windows.mask)
            elapsed = torch.as_tensor(self.replay.elapsed_at(windows.indices[:, 0]))
            starts = StartStates(latents, actions, mask, elapsed)
            self._dream = Dream(self.model, starts, self.config.dream.latent_stack, self._metadata)
        return self._dream

    def _measure(self, seconds: float, act: Callable[[], Any], items: int) -> tuple[float, float]:
        """Seconds and operations of one of a call's ``items``; for 0 seconds the operations alone."""
        with FlopCounterMode(display=False) as counter:
            act()
        self._wait()
        if not seconds:
            return 0.0, counter.get_total_flops() / items
        calls, begun = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - begun < seconds:
            act()
            self._wait()
            calls += 1
        return (time.perf_counter() - begun) / (calls * items), counter.get_total_flops() / items

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
