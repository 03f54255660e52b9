"""Dreams beside the real game that stand for many: of as many drawn starts the best, the median and the worst."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dreamgym.checkpoint import Dream
from dreamgym.fidelity import MOVING
from dreamgym.held_out import FloatArray
from dreamgym.video import Comparison, compare_many

if TYPE_CHECKING:
    from dreamgym.replay import Replay


class Case(NamedTuple):
    """One dream of many.

    Attributes:
        label: "best", "median" or "worst".
        error: :func:`moving_error` of its frames after the first, their mean.
        rank: its place among the starts, 1 is best.
        starts: of how many.
        shown: the dream and the game.
    """

    label: str
    error: float
    rank: int
    starts: int
    shown: Comparison


def moving_error(shown: Comparison, background: FloatArray) -> FloatArray:
    """How far a dream is from the game where anything moves in either, frame by frame.

    Args:
        shown: frames uint8 (steps + 1, height, width).
        background: the replay's median frame, (height, width).

    Returns:
        Mean absolute difference, in [0, 1], of the pixels that differ from the background in the game or in the dream,
        (steps + 1,); 0 for frames in which none does.
    """
    real, dream = shown.real.astype(np.float64), shown.dream.astype(np.float64)
    moves = (np.abs(real - background) > MOVING) | (np.abs(dream - background) > MOVING)
    wrong = (np.abs(real - dream) * moves).sum(axis=(1, 2))
    return wrong / np.maximum(moves.sum(axis=(1, 2)), 1) / 255


def representative_cases(
    dream: Dream, replay: Replay, *, starts: int = 24, horizon: int = 50, seed: int = 0
) -> list[Case]:
    """Dream on from drawn moments of the real game with the actions that were really taken, and choose three.

    Args:
        dream: what dreams.
        replay: real experience that it was not fitted to.
        starts: how many moments are drawn, without replacement.
        horizon: steps of each dream; fewer where no episode is as long.
        seed: of the starts and of the dreams.

    Returns:
        The best, the median and the worst by the mean of :func:`moving_error`; fewer where there are fewer starts.

    Raises:
        InvalidInputError: there is no real experience, or a horizon or number of starts below one.
    """
    shown = compare_many(dream, replay, starts=starts, horizon=horizon, seed=seed)
    background = replay.background().astype(np.float64)
    errors = [float(moving_error(one, background)[1:].mean()) for one in shown]
    order = np.argsort(errors, kind="stable")
    chosen = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    ranks: dict[int, str] = {}
    for label, rank in chosen.items():
        ranks.setdefault(rank, label)
    return [Case(label, errors[order[rank]], rank + 1, len(order), shown[order[rank]]) for rank, label in ranks.items()]
