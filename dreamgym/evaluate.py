"""What a policy is worth: scores in the real game and inside the dream, with their uncertainty.

How faithful the dream itself is, is measured in :mod:`dreamgym.fidelity`; its entry point is offered here too.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from dreamgym.errors import InvalidInputError
from dreamgym.fidelity import fidelity
from dreamgym.real import make_game_vector_env
from dreamgym.replay import Replay
from dreamgym.terminal import progress_bar

__all__ = ["Policy", "RandomPolicy", "Score", "evaluate_dream", "evaluate_real", "fidelity", "random_score"]

Observation = Any
"""A batch of observations: an array (num_envs, ...), or a dict or tuple of such arrays."""

BoolArray = npt.NDArray[np.bool_]


class Policy(Protocol):
    """Whatever acts as Stable-Baselines3's models do."""

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Choose an action for every env.

        Args:
            observation: a batch of observations, (num_envs, ...) or a dict of such arrays.
            state: the recurrent state that the last call returned; None at the start and for policies without one.
            episode_start: bool (num_envs,): the envs whose episode begins with this observation.
            deterministic: the most likely action instead of a sampled one.

        Returns:
            The actions, (num_envs, ...), and the next recurrent state.
        """
        ...


class RandomPolicy:
    """Uniform random actions: the score that every other one is compared with."""

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        """Prepare the policy.

        Args:
            action_space: the space of one env's action, Discrete or a bounded Box.
            seed: of the policy's own random stream.

        Raises:
            InvalidInputError: the space is neither Discrete nor a bounded Box.
        """
        if not isinstance(action_space, gym.spaces.Discrete | gym.spaces.Box):
            raise InvalidInputError(f"action_space: expected Discrete or Box, got {action_space}.")
        if isinstance(action_space, gym.spaces.Box) and not action_space.is_bounded("both"):
            raise InvalidInputError(f"action_space: expected a bounded Box to draw uniformly from, got {action_space}.")
        self.action_space = action_space
        self._random = np.random.default_rng(seed)

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Draw an action for every env; see :meth:`Policy.predict`."""
        count = _batch_size(observation)
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return space.start + self._random.integers(int(space.n), size=count), state
        return self._random.uniform(space.low, space.high, size=(count, *space.shape)).astype(space.dtype), state


def _batch_size(observation: Observation) -> int:
    while isinstance(observation, dict | tuple):
        values = cast("dict[str, Any] | tuple[Any, ...]", observation)
        observation = next(iter(values.values())) if isinstance(values, dict) else values[0]
    return len(observation)


@dataclass(frozen=True)
class Score:
    """Returns of complete episodes and what they say about the mean.

    Attributes:
        mean: mean return.
        std: standard deviation of the returns over the episodes (not of the mean).
        low: lower end of the 95 % bootstrap interval of the mean.
        high: upper end of that interval.
        episodes: the return of every episode.
        lengths: the number of steps of every episode.
    """

    mean: float
    std: float
    low: float
    high: float
    episodes: tuple[float, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, episodes: Sequence[float], lengths: Sequence[int]) -> Score:
        """Summarise episodes: the same episodes always give the same interval.

        Args:
            episodes: their returns.
            lengths: their numbers of steps.

        Raises:
            InvalidInputError: there are no episodes, or not one length for each.
        """
        if not episodes or len(episodes) != len(lengths):
            raise InvalidInputError(
                f"score: expected at least one episode and a length for each, got {len(episodes)} and {len(lengths)}."
            )
        returns = np.asarray(episodes, dtype=np.float64)
        low, high = _bootstrap_interval(returns)
        return cls(
            mean=float(returns.mean()),
            std=float(returns.std()),
            low=low,
            high=high,
            episodes=tuple(float(value) for value in returns),
            lengths=tuple(int(length) for length in lengths),
        )

    def as_dict(self) -> dict[str, Any]:
        """The score as JSON can hold it: the fields by name, tuples as lists."""
        return {
            "mean": self.mean,
            "std": self.std,
            "low": self.low,
            "high": self.high,
            "episodes": list(self.episodes),
            "lengths": list(self.lengths),
        }


def _bootstrap_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean, bias-corrected and accelerated; a point where the values do not vary."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, mean
    result = stats.bootstrap((values,), np.mean, confidence_level=0.95, rng=np.random.default_rng(0))
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (low, high) if np.isfinite([low, high]).all() else (mean, mean)


def random_score(game: str, episodes: int = 32, seed: int = 0, *, num_envs: int = 8, **options: Any) -> Score:
    """Score of uniform random actions in the real game.

    Args:
        game: name or id, as :func:`dreamgym.real.make_game_env` takes it.
        episodes: how many complete episodes to play.
        seed: of the game and of the actions.
        num_envs: how many games are played side by side.
        options: passed on to :func:`dreamgym.real.make_game_vector_env`.

    Returns:
        The score, from raw rewards.

    Raises:
        UnknownGameError: nobody registered such a game.
        InvalidInputError: a number of episodes or envs below one.
    """
    if num_envs < 1:
        raise InvalidInputError(f"num_envs: expected at least 1, got {num_envs}.")
    env = make_game_vector_env(game, min(num_envs, max(episodes, 1)), **options)
    try:
        return _play(RandomPolicy(env.single_action_space, seed), env, episodes, seed)
    finally:
        env.close()


def evaluate_real(
    policy: Policy,
    env: gym.vector.VectorEnv[Any, Any, Any],
    episodes: int = 32,
    seed: int = 0,
    *,
    deterministic: bool = False,
    record: Replay | None = None,
    record_episodes: int = 0,
    progress: bool = False,
) -> Score:
    """Score of a policy in the real game.

    Every env contributes a number of episodes that is fixed beforehand, so that short episodes are not counted more
    often than long ones. What is played after an env's last counted episode is thrown away.

    Args:
        policy: acts on the env's observations, as Stable-Baselines3's models do.
        env: the real game seen as the policy saw the dream (``make_real_env(dream, num_envs=n)``), SAME_STEP autoreset.
        episodes: how many complete episodes to count.
        seed: of the game and of the policy's sampling; the global generators are left as they were.
        deterministic: the most likely action instead of a sampled one.
        record: where to keep the raw experience of the first episodes, for :func:`dreamgym.fidelity.fidelity`. The env
            must then have an attribute ``frames``: the newest raw frame of every env, uint8 (num_envs, height, width).
        record_episodes: how many of the counted episodes are recorded: the first of every env, then the second, ...
        progress: whether to show a progress bar.

    Returns:
        The score, from the env's rewards.

    Raises:
        InvalidInputError: fewer than one episode, more episodes to record than to play, episodes to record and nowhere
            to, an env without ``frames`` when recording, or one that does not autoreset in the same step.
    """
    recorder = None
    if record_episodes:
        if record is None:
            raise InvalidInputError(f"record_episodes is {record_episodes}: pass record=Replay(...) to keep them in.")
        if not 0 < record_episodes <= episodes:
            raise InvalidInputError(f"record_episodes: expected 0 to {episodes} (episodes), got {record_episodes}.")
        recorder = _Recorder(record, env, _shares(episodes, env.num_envs), record_episodes)
    return _play(policy, env, episodes, seed, deterministic, recorder, progress)


def evaluate_dream(
    policy: Policy,
    env: gym.vector.VectorEnv[Any, Any, Any],
    episodes: int = 64,
    seed: int = 0,
    *,
    deterministic: bool = False,
    progress: bool = False,
) -> Score:
    """Return of a policy inside the dream: never a score, but what it believes it is worth.

    Args:
        policy: acts on the env's observations, as Stable-Baselines3's models do.
        env: a dream with SAME_STEP autoreset and a horizon; all dreams must start at age zero (no staggering), so that
            every return is that of ``horizon`` steps or of a dream that ended before.
        episodes: how many complete dreams to count, a fixed number in every env.
        seed: of the dreams and of the policy's sampling; the global generators are left as they were.
        deterministic: the most likely action instead of a sampled one.
        progress: whether to show a progress bar.

    Returns:
        The return per dream, in the dream's (clipped) rewards.

    Raises:
        InvalidInputError: fewer than one episode, an env that does not autoreset in the same step, or dreams that are
            staggered or have no horizon.
    """
    simulator = getattr(env, "simulator", None)
    if getattr(simulator, "horizon", 1) is None:
        raise InvalidInputError("evaluate_dream: expected a dream with a horizon, got one that need never end.")
    if getattr(simulator, "stagger", False):
        raise InvalidInputError("evaluate_dream: expected dreams that start at age zero, got stagger=True.")
    return _play(policy, env, episodes, seed, deterministic, progress=progress)


def _shares(episodes: int, num_envs: int) -> npt.NDArray[np.int64]:
    """How many episodes each env contributes: the rule of Stable-Baselines3's ``evaluate_policy``."""
    return np.asarray([(episodes + index) // num_envs for index in range(num_envs)], dtype=np.int64)


def _play(
    policy: Policy,
    env: gym.vector.VectorEnv[Any, Any, Any],
    episodes: int,
    seed: int,
    deterministic: bool = False,
    recorder: _Recorder | None = None,
    progress: bool = False,
) -> Score:
    """Play until every env has contributed its share of the episodes."""
    if episodes < 1:
        raise InvalidInputError(f"episodes: expected at least 1, got {episodes}.")
    if seed < 0:
        raise InvalidInputError(f"seed: expected at least 0, got {seed}.")
    if not hasattr(policy, "predict"):
        kind = type(policy).__name__
        raise InvalidInputError(f"policy: expected one with predict(), as SB3's models have it, got {kind}.")
    mode = env.metadata.get("autoreset_mode", getattr(env, "autoreset_mode", None))
    if mode != gym.vector.AutoresetMode.SAME_STEP:
        raise InvalidInputError(f"env: expected SAME_STEP autoreset, got {mode}.")
    shares = _shares(episodes, env.num_envs)
    played = np.zeros(env.num_envs, dtype=np.int64)
    returns = np.zeros(env.num_envs, dtype=np.float64)
    lengths = np.zeros(env.num_envs, dtype=np.int64)
    finished: list[tuple[float, int]] = []
    bar = progress_bar(total=episodes, name="evaluate", unit="episode", wanted=progress)
    with _seeded(policy, seed), bar:
        observation, _ = env.reset(seed=seed)
        state = None
        starts = np.ones(env.num_envs, dtype=np.bool_)
        while (played < shares).any():
            actions, state = policy.predict(observation, state, starts, deterministic)
            if recorder is not None:
                recorder.before(actions, starts)
            observation, rewards, terminated, truncated, infos = env.step(actions)
            rewards = np.asarray(rewards, dtype=np.float64)
            terminated, truncated = np.asarray(terminated, dtype=np.bool_), np.asarray(truncated, dtype=np.bool_)
            starts = terminated | truncated
            returns += rewards
            lengths += 1
            if recorder is not None:
                recorder.after(rewards, terminated, truncated, infos)
            for index in np.flatnonzero(starts):
                if played[index] < shares[index]:
                    finished.append((float(returns[index]), int(lengths[index])))
                    bar.update()
            played += starts
            returns[starts] = 0
            lengths[starts] = 0
    return Score.of([value for value, _ in finished], [length for _, length in finished])


class _Recorder:
    """Keeps the raw experience of the first episodes and appends each to a replay when it is complete.

    One env after the other would tear the episodes of parallel envs to pieces in the replay, so each is held back
    until it has ended.
    """

    def __init__(
        self,
        replay: Replay,
        env: gym.vector.VectorEnv[Any, Any, Any],
        shares: npt.NDArray[np.int64],
        episodes: int,
    ) -> None:
        self._replay = replay
        self._env = env
        rounds = [(turn, index) for index, share in enumerate(shares) for turn in range(int(share))]
        self._left = np.zeros(len(shares), dtype=np.int64)
        for _, index in sorted(rounds)[:episodes]:
            self._left[index] += 1
        self._steps: list[list[tuple[Any, ...]]] = [[] for _ in shares]
        self._pending: tuple[npt.NDArray[np.uint8], npt.NDArray[Any], BoolArray, npt.NDArray[np.int64]] | None = None

    def before(self, actions: npt.NDArray[Any], starts: BoolArray) -> None:
        """Note what is seen and done, before the env steps and shows its next frames."""
        if not self._left.any():
            return
        frames = getattr(self._env, "frames", None)
        if frames is None:
            raise InvalidInputError(f"record: expected an env with 'frames', {type(self._env).__name__} has none.")
        phases = np.broadcast_to(np.asarray(getattr(self._env, "phases", 0)), len(frames))
        self._pending = np.array(frames, dtype=np.uint8), np.array(actions), starts.copy(), phases

    def after(
        self, rewards: npt.NDArray[np.float64], terminated: BoolArray, truncated: BoolArray, infos: dict[str, Any]
    ) -> None:
        """Note what followed, and hand over the episodes that this step ended."""
        if self._pending is None:
            return
        frames, actions, first, phases = self._pending
        self._pending = None
        life_lost = _life_lost(infos, terminated | truncated)
        for index in np.flatnonzero(self._left):
            self._steps[index].append(
                (
                    frames[index],
                    actions[index],
                    float(rewards[index]),
                    bool(terminated[index]),
                    bool(truncated[index]),
                    bool(life_lost[index]),
                    bool(first[index]),
                    int(phases[index]),
                )
            )
            if terminated[index] or truncated[index]:
                for step in self._steps[index]:
                    self._replay.append(*step)
                self._steps[index] = []
                self._left[index] -= 1


def _life_lost(infos: dict[str, Any], ended: BoolArray) -> BoolArray:
    """Which envs lost a life in this step; under SAME_STEP the infos of an ended episode are in ``final_info``."""
    lost = np.zeros(len(ended), dtype=np.bool_)
    if "life_lost" in infos:
        lost |= np.asarray(infos["life_lost"], dtype=np.bool_) & ~ended
    final: Any = infos.get("final_info")
    if isinstance(final, dict) and "life_lost" in final:
        lost |= np.asarray(cast("dict[str, Any]", final)["life_lost"], dtype=np.bool_) & ended
    return lost


@contextmanager
def _seeded(policy: Policy, seed: int) -> Generator[None]:
    """Seed what Stable-Baselines3's policies draw from (global generators, their action space), then restore it."""
    space = getattr(policy, "action_space", None)
    generator = space.np_random.bit_generator if isinstance(space, gym.Space) else None
    restore = {} if generator is None else generator.state
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        if generator is not None:
            generator.state = type(generator)(seed).state
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            if generator is not None:
                generator.state = restore
