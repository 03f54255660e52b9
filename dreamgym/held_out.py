"""Held-out real experience: how much of it, and the windows of it that a dream is measured on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from dreamgym.errors import ReplayError

if TYPE_CHECKING:
    from dreamgym.replay import Replay

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

LEAST_HELD_OUT = 0.05
"""Least fraction of a run's real episodes, fitted to or not, that is held out."""

MOST_HELD_OUT = 54_000
"""Most held-out records in memory: half a gigabyte of frames, two of the longest episodes."""

MARGIN = 2
"""An event counts as predicted when it is dreamt at most so many steps too early or too late."""


class HeldOutWindows(NamedTuple):
    """Windows of real experience: first the uniform ones, then those with a reward, then those with an end.

    Attributes:
        indices: records of the replay, (count, context + horizon): the frames; clamped to the episode's last record.
        frames_real: whether that frame belongs to the window's episode, of the same shape.
        acted: records whose actions are given, (count, context - 1 + horizon + MARGIN), clamped likewise: the dream
            goes on a little, so that an event at the horizon may be dreamt too late like any other.
        rewards: clipped and rounded, (count, horizon + 2 MARGIN): the MARGIN steps before the dream and after its
            horizon too; zero outside the episode.
        ends: whether the step ended the episode, of the same shape and likewise.
        real: whether the step happened before the episode was over, (count, horizon).
        counted: whether an event dreamt there is held against the dream, (count, horizon + MARGIN): the real steps and,
            where the game ended, the MARGIN steps after it, as the end may be dreamt too late like any other event.
        weight: how many windows of the held-out experience each one stands for, (count,).
        context: number of frames before the first dreamt one.
        uniform: number of windows drawn uniformly.
        event: number of windows drawn because they hold a reward.
    """

    indices: IntArray
    frames_real: BoolArray
    acted: IntArray
    rewards: FloatArray
    ends: BoolArray
    real: BoolArray
    counted: BoolArray
    weight: FloatArray
    context: int
    uniform: int
    event: int


def draw_windows(
    replay: Replay, context: int, horizon: int, starts: int, life_loss_ends: bool, random: np.random.Generator
) -> HeldOutWindows:
    """Draw ``starts`` uniform windows and, as events are rare, some that hold one.

    Up to half as many hold a reward in the horizon, lost and won points in equal numbers; up to an eighth as many hold
    an end. Each draw is without replacement. A window's weight is one over the expected number of times that the draws
    together bring it, so that weighted sums over all windows estimate those over the whole held-out experience without
    bias, however many windows were drawn for what happens in them (Veach and Guibas 1995, "Optimally Combining Sampling
    Techniques for Monte Carlo Rendering", the balance heuristic).

    Args:
        replay: real episodes.
        context: real frames before the first dreamt one.
        horizon: steps of the dream.
        starts: number of uniform windows, fewer where the experience has fewer.
        life_loss_ends: whether a lost life is an end.
        random: of the draws.

    Raises:
        ReplayError: the replay holds no stretch of one episode as long as the context.
    """
    everything = np.arange(len(replay))
    begin, stop = episode_spans(replay)
    candidates = np.flatnonzero(everything + context <= stop)
    if not len(candidates):
        raise ReplayError(
            f"fidelity: expected held-out episodes of at least {context} steps (context), "
            f"got {len(replay)} records and none as long."
        )
    rewards = np.rint(np.clip(replay.rewards_at(everything), -1, 1)).astype(np.float64)
    terminated = replay.terminated_at(everything)
    ends = terminated | replay.life_lost_at(everything) if life_loss_ends else terminated
    first = candidates + context - 1
    last = np.minimum(first + horizon, stop[candidates])
    drawn: list[IntArray] = []
    times = np.zeros(len(candidates))

    def draw(wanted: BoolArray, count: int) -> None:
        """Draw windows of one kind, and count how often that was to be expected of each."""
        pool = np.flatnonzero(wanted)
        count = min(count, len(pool))
        drawn.append(random.choice(pool, size=count, replace=False))
        times[pool] += count / max(len(pool), 1)

    def holding(happened: BoolArray) -> BoolArray:
        """Whether it happens in the horizon of each candidate."""
        count = np.concatenate([[0], np.cumsum(happened)])
        return count[last] > count[first]

    draw(np.ones(len(candidates), dtype=np.bool_), starts)
    for sign in (-1, 1):
        draw(holding(rewards == sign), starts // 4)
    draw(holding(ends), max(starts // 8, 1))
    places = np.concatenate(drawn)
    chosen = candidates[places]
    start, end = begin[chosen, None], stop[chosen, None]
    frames = chosen[:, None] + np.arange(context + horizon)
    acted = chosen[:, None] + np.arange(context - 1 + horizon + MARGIN)
    steps = acted[:, context - 1 :]
    around = chosen[:, None] + np.arange(context - 1 - MARGIN, context - 1 + horizon + MARGIN)
    inside = (around >= start) & (around < end)
    around = np.clip(around, start, end - 1)
    return HeldOutWindows(
        indices=np.minimum(frames, end - 1),
        frames_real=frames < end,
        acted=np.minimum(acted, end - 1),
        rewards=np.where(inside, rewards[around], 0),
        ends=inside & ends[around],
        real=(steps < end)[:, :horizon],
        counted=steps < end + MARGIN * terminated[end - 1],
        weight=1 / times[places],
        context=context,
        uniform=len(drawn[0]),
        event=len(drawn[1]) + len(drawn[2]),
    )


def missing_episodes(fitted: int, held_out: int) -> int:
    """How many episodes more must be held out for them to be at least :data:`LEAST_HELD_OUT` of all.

    Args:
        fitted: episodes that are, or will be, fitted to.
        held_out: episodes that are not.
    """
    needed = fitted * LEAST_HELD_OUT / (1 - LEAST_HELD_OUT)
    return max(0, math.ceil(needed - 1e-9) - held_out)


def longest_episode(replay: Replay) -> int:
    """Records of the longest episode; 0 where there is none."""
    return max((stop - start for start, stop in replay.iter_episodes()), default=0)


def episode_spans(replay: Replay) -> tuple[IntArray, IntArray]:
    """The episode that every record belongs to.

    Args:
        replay: any.

    Returns:
        int64 (len(replay),) each: the first record of the episode, and the one after its last.
    """
    spans = np.asarray(replay.iter_episodes(), dtype=np.int64).reshape(-1, 2)
    begin, stop = np.repeat(spans, spans[:, 1] - spans[:, 0], axis=0).T
    return begin, stop
