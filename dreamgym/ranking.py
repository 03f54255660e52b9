"""Does a dream rank policies as the real game does? If not, what is best in the dream need not be best in the game."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from scipy import stats

from dreamgym.errors import InvalidInputError
from dreamgym.evaluate import Policy, RandomPolicy, Score, evaluate_dream, evaluate_real
from dreamgym.terminal import progress_bar

FloatArray = npt.NDArray[np.float64]

LEAST_POLICIES = 3
"""Two policies are in the same order or they are not: that is no correlation."""

RESAMPLES = 1_000
"""Draws of the bootstrap."""


class EpsilonPolicy:
    """A policy that takes a uniform random action now and then: the more often, the weaker it is.

    Two of them with one seed take their random actions at the same moments as far as the smaller epsilon goes, and take
    the same ones.
    """

    def __init__(self, policy: Policy, action_space: gym.Space[Any], epsilon: float, seed: int = 0) -> None:
        """Prepare the policy.

        Args:
            policy: acts otherwise.
            action_space: the space of one env's action, Discrete or a bounded Box.
            epsilon: chance of a random action, in [0, 1].
            seed: of the random actions.

        Raises:
            InvalidInputError: an epsilon outside [0, 1], or a space that there is no uniform action of.
        """
        if not 0 <= epsilon <= 1:
            raise InvalidInputError(f"epsilon: expected 0 to 1, got {epsilon}.")
        # The policy's own space, where it has one: algorithms that explore draw from it, and it is seeded by name.
        self.action_space = getattr(policy, "action_space", action_space)
        self.epsilon = epsilon
        self._policy = policy
        self._uniform = RandomPolicy(action_space, seed)
        self._random = np.random.default_rng([seed, 1])

    def predict(
        self,
        observation: Any,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Choose an action for every env; see :meth:`dreamgym.evaluate.Policy.predict`."""
        actions, state = self._policy.predict(observation, state, episode_start, deterministic)
        drawn, _ = self._uniform.predict(observation)
        actions = np.asarray(actions)
        random = self._random.random(len(actions)) < self.epsilon
        return np.where(random.reshape(-1, *[1] * (actions.ndim - 1)), drawn, actions).astype(actions.dtype), state


def graded_policies(
    policy: Policy, action_space: gym.Space[Any], count: int = 8, seed: int = 0
) -> dict[str, EpsilonPolicy]:
    """Policies from a given one down to chance, in equal steps.

    Args:
        policy: the strongest, a Stable-Baselines3 model for one.
        action_space: the space of one env's action (``env.single_action_space``), Discrete or a bounded Box.
        count: how many.
        seed: of the random actions.

    Returns:
        By name, the given policy mixed with uniform random actions: with a chance of 0, 1 / (count - 1), ..., 1.

    Raises:
        InvalidInputError: fewer than :data:`LEAST_POLICIES`, or a space that there is no uniform action of.
    """
    if count < LEAST_POLICIES:
        raise InvalidInputError(f"count: expected at least {LEAST_POLICIES} policies to rank, got {count}.")
    chances = np.linspace(0, 1, count).tolist()
    return {f"{chance:.0%} random": EpsilonPolicy(policy, action_space, chance, seed) for chance in chances}


@dataclass(frozen=True)
class Ranking:
    """Policies in the game and in the dream.

    Attributes:
        names: of the policies.
        real: of each, the score in the game.
        dream: of each, the return of dreams that begin at random real moments.
        correlation: Spearman's rank correlation of the dream's return per step with the game's return per episode, in
            [-1, 1]: 1 is the same order, 0 is none. None where all policies have the same return on one side.
        low: lower end of its 95 % interval: policies whose scores are close change places by chance.
        high: upper end of that interval.
        correlation_per_step: the same with the game's return per step, without an interval.
    """

    names: tuple[str, ...]
    real: tuple[Score, ...]
    dream: tuple[Score, ...]
    correlation: float | None
    low: float | None
    high: float | None
    correlation_per_step: float | None

    @classmethod
    def of(cls, names: tuple[str, ...], real: tuple[Score, ...], dream: tuple[Score, ...]) -> Ranking:
        """Compare scores that are given.

        The interval is a percentile bootstrap over the episodes and dreams of every policy. Resampling adds to the
        chance that is in the scores already, so it lies a little low.

        Args:
            names: of the policies.
            real: their scores in the game.
            dream: their returns in the dream.

        Raises:
            InvalidInputError: fewer than :data:`LEAST_POLICIES`, or not one name and two scores for each.
        """
        if len(names) < LEAST_POLICIES or not len(names) == len(real) == len(dream):
            raise InvalidInputError(
                f"ranking: expected at least {LEAST_POLICIES} policies and two scores for each, "
                f"got {len(names)} names, {len(real)} real scores and {len(dream)} dreamt ones."
            )
        imagined = np.array([per_step(score) for score in dream])
        random = np.random.default_rng(0)
        drawn = [
            rank_correlation(
                np.array([_resampled(score, random, by_step=True) for score in dream]),
                np.array([_resampled(score, random, by_step=False) for score in real]),
            )
            for _ in range(RESAMPLES)
        ]
        known = [value for value in drawn if value is not None]
        low, high = np.quantile(known, [0.025, 0.975]).tolist() if known else (None, None)
        correlation = rank_correlation(imagined, np.array([score.mean for score in real]))
        return cls(
            names,
            real,
            dream,
            correlation,
            None if correlation is None else low,
            None if correlation is None else high,
            rank_correlation(imagined, np.array([per_step(score) for score in real])),
        )

    def as_dict(self) -> dict[str, Any]:
        """The ranking as JSON can hold it: the numbers, and ``policies`` with name, scores and returns per step."""
        policies = [
            {
                "name": name,
                "real": real.as_dict(),
                "dream": dream.as_dict(),
                "real_per_step": per_step(real),
                "dream_per_step": per_step(dream),
            }
            for name, real, dream in zip(self.names, self.real, self.dream, strict=True)
        ]
        return {
            "rank_correlation": self.correlation,
            "low": self.low,
            "high": self.high,
            "rank_correlation_per_step": self.correlation_per_step,
            "policies": policies,
        }


def rank_policies(
    policies: Mapping[str, Policy],
    real: gym.vector.VectorEnv[Any, Any, Any],
    dreams: gym.vector.VectorEnv[Any, Any, Any],
    *,
    episodes: int = 16,
    dream_episodes: int = 256,
    seed: int = 0,
    deterministic: bool = False,
    progress: bool = False,
) -> Ranking:
    """Play policies in the game and in its dream, and compare the two orders that come of it.

    All of them play games and dreams with the same seed, so that in the dream they begin at the same real moments.

    Args:
        policies: by name, at least :data:`LEAST_POLICIES`, better eight or more, of different strength: those of
            :func:`graded_policies`, or anybody's.
        real: the game as the policies see it (``make_real_env(dream, num_envs=n)``), SAME_STEP autoreset.
        dreams: the dream as they see it (``DreamVectorEnv``), SAME_STEP autoreset, a horizon, no staggering.
        episodes: complete real episodes of each policy.
        dream_episodes: complete dreams of each policy.
        seed: of the games, of the dreams and of the policies' sampling.
        deterministic: the most likely action instead of a sampled one.
        progress: whether to show a progress bar.

    Returns:
        The ranking.

    Raises:
        InvalidInputError: too few policies, fewer than one episode, or envs that
            :func:`dreamgym.evaluate.evaluate_real` and :func:`dreamgym.evaluate.evaluate_dream` do not take.
    """
    if len(policies) < LEAST_POLICIES:
        raise InvalidInputError(f"policies: expected at least {LEAST_POLICIES} to rank, got {len(policies)}.")
    scores: list[Score] = []
    imagined: list[Score] = []
    for policy in progress_bar(policies.values(), name="rank", unit="policy", wanted=progress):
        imagined.append(evaluate_dream(policy, dreams, dream_episodes, seed, deterministic=deterministic))
        scores.append(evaluate_real(policy, real, episodes, seed, deterministic=deterministic))
    return Ranking.of(tuple(policies), tuple(scores), tuple(imagined))


def rank_correlation(left: FloatArray, right: FloatArray) -> float | None:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        left: (count,) numbers.
        right: (count,) numbers.

    Returns:
        In [-1, 1]; None where one side does not vary.
    """
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(left), stats.rankdata(right))[0, 1])


def per_step(score: Score) -> float:
    """Return per step of all episodes together."""
    return sum(score.episodes) / sum(score.lengths)


def _resampled(score: Score, random: np.random.Generator, by_step: bool) -> float:
    """The mean return of as many episodes drawn again from them, per episode or per step."""
    chosen = random.integers(len(score.episodes), size=len(score.episodes))
    total = np.asarray(score.episodes)[chosen].sum()
    return float(total / (np.asarray(score.lengths)[chosen].sum() if by_step else len(chosen)))
