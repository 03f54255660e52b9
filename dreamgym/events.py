"""Events that a dream foretells: points lost and won, ends. How many, which, and how sure of them it may be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dreamgym.held_out import MARGIN, BoolArray, FloatArray, HeldOutWindows, IntArray

THRESHOLD = 0.5
"""Expected reward (or probability of an end), summed over the margin, from which on an event counts as predicted."""

FLOOR = 0.1
"""The same, from which on an event is dreamt at all: how sure the dream is of it is then compared with the game."""

CALIBRATION_BINS = 5
"""Equal bins of how sure the dream is. Few, as events are."""

STEP_EDGES = (0, 5, 10, 15, 25)
"""Edges of the ranges of steps, half open and counted from zero, by which recall is given."""


class Events(NamedTuple):
    """One kind of event in every window.

    Attributes:
        happened: bool (count, horizon + 2 MARGIN), in the game: the MARGIN steps before the dream and after its horizon
            too, where what is dreamt within it may belong.
        expected: float64 (count, horizon + MARGIN), in the dream: how many, at least 0.
    """

    happened: BoolArray
    expected: FloatArray


Metrics = dict[str, float | list[float]]


def event_metrics(windows: HeldOutWindows, rewards: FloatArray, ends: FloatArray) -> Metrics:
    """Compare what was dreamt with what happened.

    Args:
        windows: what happened.
        rewards: expected reward of each dreamt step, (count, horizon + MARGIN) in [-1, 1].
        ends: probability of an end there, of the same shape.

    Returns:
        Numbers by name; see :func:`dreamgym.fidelity.fidelity`.
    """
    lost = Events(windows.rewards == -1, np.maximum(-rewards, 0))
    won = Events(windows.rewards == 1, np.maximum(rewards, 0))
    ended = Events(windows.ends, ends)
    return {
        **_recall("recall_lost", [lost]),
        **_recall("recall_won", [won]),
        **_recall("recall", [lost, won], also=[(0, 10)]),
        **_recall("end_recall", [ended], also=[(0, 10)]),
        **_certainty("precision_lost", None, [lost], windows),
        **_certainty("precision_won", None, [won], windows),
        **_certainty("precision", "calibration", [lost, won], windows),
        **_certainty("end_precision", "end_calibration", [ended], windows),
        **_means("reward", "", windows.rewards, rewards, windows),
        **_means("reward", "_lost", lost.happened, lost.expected, windows),
        **_means("reward", "_won", won.happened, won.expected, windows),
        **_means("end", "", ended.happened, ended.expected, windows),
        **_reward_correlation(rewards, windows),
    }


def _recall(name: str, kinds: Sequence[Events], also: Sequence[tuple[int, int]] = ()) -> dict[str, float]:
    """The fraction of real events that are dreamt, whatever is dreamt beside them."""
    happened = np.concatenate([kind.happened[:, MARGIN:-MARGIN] for kind in kinds])
    horizon = happened.shape[1]
    sums = np.concatenate([_window_sum(kind.expected)[:, :horizon] for kind in kinds])
    dreamt = happened & (sums >= THRESHOLD)
    ranges = {name: (0, horizon)} | {
        f"{name}_{low}_{high}": (low, high) for low, high in [*pairwise(STEP_EDGES), *also]
    }
    return {
        key: float(dreamt[:, low:high].sum() / happened[:, low:high].sum())
        for key, (low, high) in ranges.items()
        if happened[:, low:high].any()
    }


def _certainty(precision: str, calibration: str | None, kinds: Sequence[Events], windows: HeldOutWindows) -> Metrics:
    """The fraction of dreamt events that are real, and how far the dream is from knowing that fraction."""
    horizon = windows.real.shape[1]
    sure: list[FloatArray] = []
    true: list[BoolArray] = []
    weight: list[FloatArray] = []
    when: list[IntArray] = []
    for kind in kinds:
        confidence = dreamt_events(np.where(windows.counted, kind.expected, 0))[:, :horizon]
        near = _window_sum(kind.happened.astype(np.float64))[:, MARGIN:-MARGIN] > 0
        rows, steps = np.nonzero(confidence)
        sure.append(confidence[rows, steps])
        true.append(near[rows, steps])
        weight.append(windows.weight[rows])
        when.append(steps)
    confidences, trues, weights = np.concatenate(sure), np.concatenate(true), np.concatenate(weight)
    found, steps = confidences >= THRESHOLD, np.concatenate(when)
    metrics: Metrics = {}
    ranges = {f"{precision}_{low}_{high}": (low, high) for low, high in pairwise(STEP_EDGES)}
    for name, (low, high) in {precision: (0, horizon), **ranges}.items():
        inside = found & (low <= steps) & (steps < high)
        if inside.any():
            metrics[name] = float(weights[inside & trues].sum() / weights[inside].sum())
    if calibration is not None and len(confidences):
        metrics[f"{calibration}_error"] = calibration_error(confidences, trues, weights)
        metrics |= {f"{calibration}_{name}": part for name, part in _by_bin(confidences, trues, weights).items()}
    return metrics


def _by_bin(confidence: FloatArray, true: BoolArray, weight: FloatArray) -> dict[str, list[float]]:
    """Of each bin that holds events: how sure the dream is of them, the fraction that is real, its share of them."""
    bins = _bins(confidence)
    held, sure, real = (
        np.bincount(bins, part, CALIBRATION_BINS) for part in (weight, weight * confidence, weight * true)
    )
    full = held > 0
    return {
        "confidence": (sure[full] / held[full]).tolist(),
        "real": (real[full] / held[full]).tolist(),
        "share": (held[full] / held.sum()).tolist(),
    }


def _bins(confidence: FloatArray) -> IntArray:
    return np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def calibration_error(confidence: FloatArray, true: BoolArray, weight: FloatArray | None = None) -> float:
    """Expected calibration error of events that a dream foretells.

    Events are put into :data:`CALIBRATION_BINS` equal bins by how sure the dream is of them. The error is the mean over
    the bins, weighted by what they hold, of the difference between how sure it is and the fraction that is real. It is
    that of object detectors (Kueppers et al. 2020, "Multivariate Confidence Calibration for Object Detection"), as what
    is missed altogether is told by recall; for classifiers see Guo et al. 2017, "On Calibration of Modern Neural
    Networks".

    Args:
        confidence: how sure the dream is of each event, (count,) in [0, 1]; at least one.
        true: whether it is real, (count,).
        weight: how much each counts, (count,); by default all the same.

    Returns:
        In [0, 1]; 0 is perfect. With few events chance alone makes it larger, about 0.1 for fifty of them.
    """
    weight = np.ones(len(confidence)) if weight is None else weight
    surplus = np.bincount(_bins(confidence), weight * (confidence - true), CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / weight.sum())


def _means(
    name: str, part: str, happened: FloatArray | BoolArray, expected: FloatArray, windows: HeldOutWindows
) -> dict[str, float]:
    """The dream's mean and the game's over the real steps, and their ratio where the game's is not zero."""
    horizon = windows.real.shape[1]
    steps = float((windows.weight[:, None] * windows.real).sum())
    dreamt = np.where(windows.counted, expected, 0)[:, :horizon]
    dream = float((windows.weight[:, None] * dreamt).sum() / steps)
    real = float((windows.weight[:, None] * happened[:, MARGIN:-MARGIN]).sum() / steps)
    metrics = {f"{name}_dream{part}": dream, f"{name}_real{part}": real}
    return metrics | ({f"{name}_ratio{part}": dream / real} if real else {})


def _reward_correlation(rewards: FloatArray, windows: HeldOutWindows) -> dict[str, float]:
    """Pearson's correlation of the sums over the horizon; nothing where one side does not vary."""
    dreamt = np.where(windows.counted, rewards, 0)[:, : windows.real.shape[1]].sum(1)
    happened = windows.rewards[:, MARGIN:-MARGIN].sum(1)
    if np.ptp(dreamt) == 0 or np.ptp(happened) == 0:
        return {}
    (left, both), (_, right) = np.cov(dreamt, happened, aweights=windows.weight, ddof=0)
    return {"reward_correlation": float(both / np.sqrt(left * right))}


def dreamt_events(expected: FloatArray) -> FloatArray:
    """Where events of one kind are dreamt: the surest first, at its centre of mass, then what is left beside it.

    Args:
        expected: how many are expected at each step, (count, steps), at least 0.

    Returns:
        How sure the dream is of an event at the step, (count, steps) in [0, 1]: the mass within MARGIN of it, cut at 1,
        where that is at least :data:`FLOOR`; 0 elsewhere.
    """
    mass = expected.copy()
    steps = np.arange(mass.shape[1])
    confidence = np.zeros(mass.shape)
    while True:
        sums = _window_sum(mass)
        peak = sums.argmax(1)
        rows = np.flatnonzero(sums.max(1) >= FLOOR)
        if not len(rows):
            return confidence
        inside = np.abs(steps - peak[rows, None]) <= MARGIN
        weight = mass[rows] * inside
        centre = np.rint((weight * steps).sum(1) / weight.sum(1)).astype(np.int64)
        confidence[rows, centre] = np.minimum(weight.sum(1), 1)
        mass[rows] = np.where(inside, 0, mass[rows])


def _window_sum(values: FloatArray) -> FloatArray:
    """Sum over the steps within MARGIN of each, (count, steps) -> (count, steps)."""
    padded = np.pad(values, ((0, 0), (MARGIN, MARGIN)))
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * MARGIN + 1, axis=1).sum(-1)
