"""How faithful a dream is to the game: measured on real experience that the world model was not fitted to."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dreamgym.errors import InvalidInputError, ReplayError

if TYPE_CHECKING:
    from dreamgym.replay import Replay
    from dreamgym.world_model import WorldModel

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MARGIN = 2
"""An event counts as predicted when it is dreamt at most so many steps too early or too late."""

THRESHOLD = 0.5
"""Expected reward (or probability of an end), summed over the margin, past which an event counts as predicted."""

REPORT_STEPS = (1, 5, 10, 15, 25)
"""Steps of the dream, counted from one, at which single numbers are given."""

STEP_EDGES = (0, 5, 10, 15, 25)
"""Edges of the ranges of steps, half open and counted from zero, by which recall is given."""

MOVING = 10
"""A pixel moves when it differs from the background by more than this (of 255)."""


class OpenLoop(NamedTuple):
    """A dream in which the actions were given and every code, after the context, was dreamt.

    Attributes:
        latents: the dreamt codes, int64 (batch, horizon, ...): what follows each action.
        rewards: expected reward of each step, float32 (batch, horizon) in [-1, 1].
        ends: probability that the episode ends with the step, float32 (batch, horizon).
    """

    latents: Tensor
    rewards: Tensor
    ends: Tensor


def open_loop(world_model: WorldModel, context: Tensor, actions: Tensor, generator: torch.Generator) -> OpenLoop:
    """Dream on from real context with given actions.

    Args:
        world_model: any codec and dynamics.
        context: real codes, int64 (batch, context, ...); the last of them is where the dream starts.
        actions: (batch, context - 1 + horizon, ...): the action taken at each frame of the context, then those of the
            dream. The dream's first action is the one at the context's last frame.
        generator: draws the codes; on the world model's device.

    Returns:
        What was dreamt.

    Raises:
        InvalidInputError: there is no action for the context's last frame.
    """
    warm = context.shape[1] - 1
    horizon = actions.shape[1] - warm
    if warm < 0 or horizon < 1:
        raise InvalidInputError(
            f"actions: expected at least {context.shape[1]}, one for each frame of context, got {actions.shape[1]}."
        )
    state = world_model.initial_state(context.shape[0])
    for step in range(warm):
        _, state = world_model.step(context[:, step], actions[:, step], state)
    latent = context[:, warm]
    latents: list[Tensor] = []
    rewards: list[Tensor] = []
    ends: list[Tensor] = []
    for step in range(warm, warm + horizon):
        prediction, state = world_model.step(latent, actions[:, step], state)
        latent = prediction.sample_latent(generator)
        latents.append(latent)
        rewards.append(prediction.expected_reward())
        ends.append(prediction.end_probability())
    return OpenLoop(torch.stack(latents, 1), torch.stack(rewards, 1), torch.stack(ends, 1))


def fidelity(
    world_model: WorldModel,
    replay: Replay,
    *,
    context: int = 8,
    horizon: int = 25,
    starts: int = 128,
    life_loss_ends: bool = True,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """Measure a dream against held-out real experience, with the real actions and open loop.

    Three draws of windows share one batched dream. ``starts`` *uniform* ones stand for the experience as it is. Up to
    half as many *event* ones hold a reward in the horizon, lost and won points in equal numbers: points are rare, and
    their recall would be noise without them. Up to an eighth as many *end* ones hold an end. A reward is clipped to
    [-1, 1] and rounded, as the world model learns it; an event counts as predicted when the expected reward, summed
    over the steps within :data:`MARGIN` of it, is past :data:`THRESHOLD` with its sign.

    Args:
        world_model: any codec and dynamics; runs on its own device.
        replay: real episodes that were not fitted to.
        context: real frames by which the recurrent state is warmed up; the last one is where the dream starts.
        horizon: steps of the dream.
        starts: number of uniform windows.
        life_loss_ends: whether the world model was taught that a lost life is an end.
        seed: of the windows and of the codes: the same seed gives the same numbers on one device.

    Returns:
        Numbers by name. What the held-out experience cannot tell (recall where nothing happens, say) is absent. *k* is
        1, 5, 10, 15, 25 and *a_b* is 0_5, 5_10, 10_15, 15_25, as far as the horizon goes.

        From the uniform windows: ``code_accuracy`` (list by step) and ``code_accuracy_k``: the fraction of codes that
        are the real frame's; ``reward_dream`` and ``reward_real``: mean reward per step; ``reward_correlation``: of the
        sums over the horizon; ``precision``, ``precision_lost``, ``precision_won``: the fraction of dreamt events that
        are real; ``pixel_error_k`` and ``pixel_error``, their mean: absolute difference, in [0, 1], to the real frame
        where that differs from the replay's background; ``pixel_error_codec``: the same for real frames that were only
        encoded and decoded, the floor of it.

        From all windows: ``recall_lost``, ``recall_won`` and ``recall_lost_a_b``, ``recall_won_a_b``: the fraction of
        real events that are dreamt; ``recall``: of both signs; ``end_recall``.

        From the event windows: ``event_precision`` and ``event_reward_correlation``.

        How many there were: ``windows_uniform``, ``windows_event``, ``windows_end``, ``events_lost``, ``events_won``,
        ``events_end`` (real events among all windows).

    Raises:
        InvalidInputError: a context, horizon or number of starts below one.
        ReplayError: the replay holds no stretch of one episode as long as the context.
    """
    for name, value in (("context", context), ("horizon", horizon), ("starts", starts)):
        if value < 1:
            raise InvalidInputError(f"{name}: expected at least 1, got {value}.")
    windows = _draw(replay, context, horizon, starts, life_loss_ends, np.random.default_rng(seed))
    generator = torch.Generator(device=world_model.device)
    generator.manual_seed(seed)
    codes = _encode(world_model, replay, windows.indices)
    actions = torch.as_tensor(replay.actions_at(windows.acted), device=world_model.device)
    dream = open_loop(world_model, codes[:, :context], actions, generator)
    rewards = dream.rewards.double().cpu().numpy()
    ends = dream.ends.double().cpu().numpy()
    return {
        **_code_metrics(dream.latents[:, :horizon], codes, windows),
        **_reward_metrics(rewards, windows),
        **_recall_metrics(rewards, ends, windows),
        **_pixel_metrics(world_model, replay, dream.latents[:, :horizon], codes, windows),
        "windows_uniform": float(windows.uniform),
        "windows_event": float(windows.event),
        "windows_end": float(len(windows.indices) - windows.uniform - windows.event),
        "events_lost": float((windows.rewards == -1).sum()),
        "events_won": float((windows.rewards == 1).sum()),
        "events_end": float(windows.ends.sum()),
    }


class _Windows(NamedTuple):
    """Windows of real experience: first the uniform ones, then those with an event, then those with an end.

    Attributes:
        indices: records of the replay, (count, context + horizon): the frames; clamped to the episode's last record.
        frames_real: whether that frame belongs to the window's episode, of the same shape.
        acted: records whose actions are given, (count, context - 1 + horizon + MARGIN), clamped likewise: the dream
            goes on a little, so that an event at the horizon may be dreamt too late like any other.
        rewards: clipped and rounded, (count, horizon); zero after the episode's end.
        around: the same with the MARGIN steps before the dream and after its horizon, (count, horizon + 2 MARGIN).
        ends: whether the step ended the episode, (count, horizon).
        real: whether the step happened before the episode was over, (count, horizon + MARGIN).
        context: number of frames before the first dreamt one.
        uniform: number of windows drawn uniformly.
        event: number of windows drawn because they hold a reward.
    """

    indices: IntArray
    frames_real: BoolArray
    acted: IntArray
    rewards: FloatArray
    around: FloatArray
    ends: BoolArray
    real: BoolArray
    context: int
    uniform: int
    event: int


def _draw(
    replay: Replay, context: int, horizon: int, starts: int, life_loss_ends: bool, random: np.random.Generator
) -> _Windows:
    """Draw the three kinds of windows; each kind without replacement."""
    everything = np.arange(len(replay))
    begin, stop = episode_spans(replay)
    candidates = np.flatnonzero(everything + context <= stop)
    if not len(candidates):
        raise ReplayError(
            f"fidelity: expected held-out episodes of at least {context} steps (context), "
            f"got {len(replay)} records and none as long."
        )
    rewards = np.rint(np.clip(replay.rewards_at(everything), -1, 1)).astype(np.float64)
    ends = replay.terminated_at(everything)
    if life_loss_ends:
        ends = ends | replay.life_lost_at(everything)

    def holding(happened: BoolArray) -> IntArray:
        """The candidates in whose horizon it happens."""
        count = np.concatenate([[0], np.cumsum(happened)])
        first = candidates + context - 1
        return candidates[count[np.minimum(first + horizon, stop[candidates])] > count[first]]

    def some(pool: IntArray, count: int) -> IntArray:
        return random.choice(pool, size=min(count, len(pool)), replace=False)

    uniform = some(candidates, starts)
    event = np.concatenate([some(holding(rewards == sign), starts // 4) for sign in (-1, 1)])
    ending = some(holding(ends), max(starts // 8, 1))
    chosen = np.concatenate([uniform, event, ending])
    start, end = begin[chosen, None], stop[chosen, None]
    frames = chosen[:, None] + np.arange(context + horizon)
    acted = chosen[:, None] + np.arange(context - 1 + horizon + MARGIN)
    steps = acted[:, context - 1 :]
    around = chosen[:, None] + np.arange(context - 1 - MARGIN, context - 1 + horizon + MARGIN)
    around_real = (around >= start) & (around < end)
    around_rewards = np.where(around_real, rewards[np.clip(around, start, end - 1)], 0)
    return _Windows(
        indices=np.minimum(frames, end - 1),
        frames_real=frames < end,
        acted=np.minimum(acted, end - 1),
        rewards=around_rewards[:, MARGIN : MARGIN + horizon],
        around=around_rewards,
        ends=(ends[np.minimum(steps, end - 1)] & (steps < end))[:, :horizon],
        real=steps < end,
        context=context,
        uniform=len(uniform),
        event=len(event),
    )


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


def _encode(world_model: WorldModel, replay: Replay, indices: IntArray) -> Tensor:
    """Codes of the records, int64 (*indices.shape, ...): each record once, in chunks that bound the memory."""
    unique, inverse = np.unique(indices, return_inverse=True)
    chunks = [
        world_model.encode(replay.frames_at(unique[start : start + 512], stack=world_model.frame_stack))
        for start in range(0, len(unique), 512)
    ]
    return torch.cat(chunks)[torch.as_tensor(inverse.reshape(indices.shape), device=world_model.device)]


def _code_metrics(dreamt: Tensor, codes: Tensor, windows: _Windows) -> dict[str, float | list[float]]:
    count, horizon = windows.uniform, dreamt.shape[1]
    same = (dreamt[:count] == codes[:count, windows.context :]).flatten(2).double().mean(2).cpu().numpy()
    real = windows.frames_real[:count, windows.context :]
    # A late step can lie behind the end of every window's episode: the curve then stops before it.
    known = int(real.any(axis=0).sum())
    by_step = [float(same[real[:, step], step].mean()) for step in range(known)]
    return {
        "code_accuracy": by_step,
        **{f"code_accuracy_{step}": by_step[step - 1] for step in REPORT_STEPS if step <= min(horizon, known)},
    }


def _reward_metrics(dreamt: FloatArray, windows: _Windows) -> dict[str, float | list[float]]:
    horizon = windows.rewards.shape[1]
    uniform = slice(0, windows.uniform)
    event = slice(windows.uniform, windows.uniform + windows.event)
    real = windows.real[uniform, :horizon]
    metrics: dict[str, float | list[float]] = {
        "reward_dream": float(dreamt[uniform, :horizon][real].mean()),
        "reward_real": float(windows.rewards[uniform][real].mean()),
    }
    masked = np.where(windows.real, dreamt, 0)
    for prefix, part in (("", uniform), ("event_", event)):
        correlation = _correlation(masked[part, :horizon].sum(1), windows.rewards[part].sum(1))
        if correlation is not None:
            metrics[f"{prefix}reward_correlation"] = correlation
        dreamt_events, true_events = 0, 0
        for sign, name in ((-1, "precision_lost"), (1, "precision_won")):
            found = _dreamt_events(sign * masked[part])[:, :horizon]
            true = found & _near(windows.around[part] == sign)[:, MARGIN:-MARGIN]
            dreamt_events, true_events = dreamt_events + int(found.sum()), true_events + int(true.sum())
            if found.any() and not prefix:
                metrics[name] = float(true.sum() / found.sum())
        if dreamt_events:
            metrics[f"{prefix}precision"] = true_events / dreamt_events
    return metrics


def _recall_metrics(rewards: FloatArray, ends: FloatArray, windows: _Windows) -> dict[str, float | list[float]]:
    """Recall over all windows. What is dreamt past the real end counts here: an event may be dreamt too late."""
    horizon = windows.rewards.shape[1]
    metrics: dict[str, float | list[float]] = {}
    hits, events = 0, 0
    for sign, name in ((-1, "recall_lost"), (1, "recall_won")):
        happened = windows.rewards == sign
        dreamt = happened & (_window_sum(sign * rewards) >= THRESHOLD)[:, :horizon]
        hits, events = hits + int(dreamt.sum()), events + int(happened.sum())
        if happened.any():
            metrics[name] = float(dreamt.sum() / happened.sum())
        for low, high in pairwise(STEP_EDGES):
            if happened[:, low:high].any():
                metrics[f"{name}_{low}_{high}"] = float(dreamt[:, low:high].sum() / happened[:, low:high].sum())
    if events:
        metrics["recall"] = hits / events
    if windows.ends.any():
        metrics["end_recall"] = float((_window_sum(ends) >= THRESHOLD)[:, :horizon][windows.ends].mean())
    return metrics


def _pixel_metrics(
    world_model: WorldModel, replay: Replay, dreamt: Tensor, codes: Tensor, windows: _Windows
) -> dict[str, float | list[float]]:
    """Error on the moving parts, at the reported steps of the uniform windows only: decoding is dear."""
    background = replay.background()
    metrics: dict[str, float | list[float]] = {}
    errors: list[float] = []
    floor: list[float] = []
    for step in (step for step in REPORT_STEPS if step <= dreamt.shape[1]):
        frame = windows.context - 1 + step
        real = np.flatnonzero(windows.frames_real[: windows.uniform, frame])
        if not len(real):
            continue
        truth = replay.frames_at(windows.indices[real, frame])[:, -1].astype(np.float64)
        moving = np.abs(truth - background) > MOVING
        if not moving.any():
            continue
        rows = torch.as_tensor(real, device=dreamt.device)
        for latents, found in ((dreamt[rows, step - 1], errors), (codes[rows, frame], floor)):
            decoded = world_model.decode(latents)[:, -1].double().cpu().numpy()
            found.append(float(np.abs(decoded - truth)[moving].mean() / 255))
        metrics[f"pixel_error_{step}"] = errors[-1]
    if errors:
        metrics["pixel_error"] = float(np.mean(errors))
        metrics["pixel_error_codec"] = float(np.mean(floor))
    return metrics


def _correlation(left: FloatArray, right: FloatArray) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _window_sum(values: FloatArray) -> FloatArray:
    """Sum over the steps within MARGIN of each, (count, horizon) -> (count, horizon)."""
    padded = np.pad(values, ((0, 0), (MARGIN, MARGIN)))
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * MARGIN + 1, axis=1).sum(-1)


def _near(happened: BoolArray) -> BoolArray:
    """Whether it happens within MARGIN of each step."""
    return _window_sum(happened.astype(np.float64)) > 0


def _dreamt_events(expected: FloatArray) -> BoolArray:
    """Where events of one sign are dreamt: the strongest first, at its centre of mass, then what is left beside it.

    Args:
        expected: expected reward of that sign's direction, (count, horizon).

    Returns:
        (count, horizon), True at every event whose mass within MARGIN of it is past THRESHOLD.
    """
    mass = np.maximum(expected, 0)
    steps = np.arange(mass.shape[1])
    found = np.zeros(mass.shape, dtype=np.bool_)
    while True:
        sums = _window_sum(mass)
        peak = sums.argmax(1)
        rows = np.flatnonzero(sums.max(1) >= THRESHOLD)
        if not len(rows):
            return found
        inside = np.abs(steps - peak[rows, None]) <= MARGIN
        weight = mass[rows] * inside
        centre = np.rint((weight * steps).sum(1) / weight.sum(1)).astype(np.int64)
        found[rows, centre] = True
        mass[rows] = np.where(inside, 0, mass[rows])
