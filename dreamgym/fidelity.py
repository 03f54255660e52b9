"""How faithful a dream is to the game: measured on real experience that the world model was not fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamgym.acts import real_acts
from dreamgym.errors import InvalidInputError
from dreamgym.events import CALIBRATION_BINS, FLOOR, STEP_EDGES, THRESHOLD, event_metrics
from dreamgym.held_out import MARGIN, HeldOutWindows, IntArray, draw_windows, episode_spans

if TYPE_CHECKING:
    from dreamgym.replay import Replay
    from dreamgym.world_model import WorldModel

__all__ = [
    "CALIBRATION_BINS",
    "FLOOR",
    "MARGIN",
    "REPORT_STEPS",
    "STEP_EDGES",
    "THRESHOLD",
    "OpenLoop",
    "episode_spans",
    "fidelity",
    "open_loop",
]

REPORT_STEPS = (1, 5, 10, 15, 25)
"""Steps of the dream, counted from one, at which single numbers are given."""

MOVING = 10
"""A pixel moves when it differs from the background by more than this (of 255)."""


class OpenLoop(NamedTuple):
    """A dream in which the actions were given and every code, after the context, was dreamt.

    Attributes:
        latents: the dreamt codes, int64 (batch, horizon, ...): what follows each action.
        rewards: expected reward of each step, float32 (batch, horizon) in [-1, 1].
        ends: probability that the episode ends with the step, float32 (batch, horizon).
        log_likelihood: natural logarithm of the probability that the dream gave to the real codes just before it drew
            its own, mean over the cells, float32 (batch, real steps); without real codes (batch, 0).
    """

    latents: Tensor
    rewards: Tensor
    ends: Tensor
    log_likelihood: Tensor


def open_loop(
    world_model: WorldModel,
    context: Tensor,
    actions: Tensor,
    generator: torch.Generator,
    real: Tensor | None = None,
    temperature: float = 1.0,
    elapsed: Tensor | None = None,
) -> OpenLoop:
    """Dream on from real context with given actions.

    Args:
        world_model: any codec and dynamics.
        context: real codes, int64 (batch, context, ...); the last of them is where the dream starts.
        actions: (batch, context - 1 + horizon, ...): the action taken at each frame of the context, then those of the
            dream. The dream's first action is the one at the context's last frame.
        generator: draws the codes and whether there is a reward; on the world model's device.
        real: real codes, int64 (batch, up to horizon, ...), of the frames that followed in the game. They are never
            shown to the dream, only looked up in its distributions.
        temperature: of the codes' distribution when they are drawn.
        elapsed: int64 (batch,), steps from the last reward, or the episode's start, to the context's first frame; None
            where it is not known.

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
    state = world_model.initial_state(context.shape[0], elapsed)
    for step in range(warm):
        _, state = world_model.step(context[:, step], actions[:, step], state)
    latent = context[:, warm]
    latents: list[Tensor] = []
    rewards: list[Tensor] = []
    ends: list[Tensor] = []
    likelihoods = [torch.zeros(len(context), 0, device=context.device)]
    for step in range(warm, warm + horizon):
        before = state
        prediction, state = world_model.step(latent, actions[:, step], before)
        if real is not None and step - warm < real.shape[1]:
            cells = world_model.latent_log_probability(prediction, real[:, step - warm])
            likelihoods.append(cells.flatten(1).mean(1, keepdim=True))
        uniforms = torch.rand(latent.shape, generator=generator, device=latent.device)
        chance = torch.rand(len(latent), generator=generator, device=latent.device)
        drawn, told = world_model.draw_reward(prediction, chance, before, state)
        latent = world_model.draw_latent(prediction, uniforms, temperature, drawn if temperature else None)
        state = told if temperature else state
        latents.append(latent)
        rewards.append(prediction.expected_reward())
        ends.append(prediction.end_probability())
    return OpenLoop(torch.stack(latents, 1), torch.stack(rewards, 1), torch.stack(ends, 1), torch.cat(likelihoods, 1))


def fidelity(
    world_model: WorldModel,
    replay: Replay,
    *,
    context: int = 8,
    horizon: int = 25,
    starts: int = 128,
    life_loss_ends: bool = True,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """Measure a dream against held-out real experience, with the real actions and open loop.

    Three draws of windows share one batched dream (:func:`dreamgym.held_out.draw_windows`). ``starts`` *uniform* ones
    stand for the experience as it is. Up to half as many *event* ones hold a reward in the horizon, lost and won points
    in equal numbers: points are rare, and what is said of them would be noise otherwise. Up to an eighth as many *end*
    ones hold an end. A reward is clipped to [-1, 1] and rounded, as the world model learns it; an event counts as
    predicted when the expected reward of its sign (for ends: the probability), summed over the steps within
    :data:`MARGIN` of it, is :data:`THRESHOLD` or more.

    Args:
        world_model: any codec and dynamics; runs on its own device.
        replay: real episodes that were not fitted to.
        context: real frames by which the recurrent state is warmed up; the last one is where the dream starts.
        horizon: steps of the dream.
        starts: number of uniform windows.
        life_loss_ends: whether the world model was taught that a lost life is an end.
        temperature: of the next latent's distribution, as the dreams that are used are drawn.
        seed: of the windows and of what is drawn: the same seed gives the same numbers on one device.

    Returns:
        Numbers by name. What the held-out experience cannot tell (recall where nothing happens, say) is absent. *k* is
        1, 5, 10, 15, 25 and *a_b* is 0_5, 5_10, 10_15, 15_25, as far as the horizon goes.

        From the uniform windows: ``code_accuracy`` (list by step) and ``code_accuracy_k``: the fraction of codes that
        are the real frame's; ``code_nll`` (list by step) and ``code_nll_k``: minus the log of the probability given to
        a real code, in nats, its mean over cells and windows. As each window is dreamt once, that probability is the
        one at the end of one dreamt path; under the mean over all paths, which is what the dream says, the real codes
        are more likely (Jensen), so this is an upper bound. ``code_nll_marginal``: the same for somebody who knows only
        how often each cell shows each code in these windows. ``pixel_error_k`` and ``pixel_error``, their mean:
        absolute difference, in [0, 1], to the real frame where that differs from the replay's background;
        ``pixel_error_codec``: the same for real frames that were only encoded and decoded, the floor of it.

        From all windows, each counted alike: ``recall_lost``, ``recall_won`` and ``recall_lost_a_b``,
        ``recall_won_a_b``: the fraction of real events that are dreamt; ``recall``, ``recall_a_b`` and ``recall_0_10``:
        of both signs, drawn in equal numbers so that it does not change with the score; ``end_recall``,
        ``end_recall_a_b``, ``end_recall_0_10``: of ends.

        From all windows, weighted so as to stand for the held-out experience as it is: ``precision``,
        ``precision_lost``, ``precision_won``, ``end_precision``, and each with ``_a_b`` behind it: the fraction of
        dreamt events that are real; ``calibration_error``, ``end_calibration_error``: the mean distance between how
        sure the dream is of its events and the fraction of them that is real
        (:func:`dreamgym.events.calibration_error`); ``calibration_confidence``, ``calibration_real`` and
        ``calibration_share`` (lists by bin, empty bins left out; of ends with ``end_`` before them): how sure it is,
        the fraction that is real, and the bin's share of the dreamt events; ``reward_dream``,
        ``reward_real`` and ``reward_ratio``: mean reward per step and dream over game (which says little where lost and
        won points cancel); with ``_lost`` and ``_won`` behind it: of one sign alone, events per step, so that the ratio
        is that of expected to real events; ``end_dream``, ``end_real``, ``end_ratio``: the same of ends;
        ``reward_correlation``: of the sums over the horizon.

        How many there were: ``windows_uniform``, ``windows_event``, ``windows_end``, ``events_lost``, ``events_won``,
        ``events_end`` (real events among all windows).

    Raises:
        InvalidInputError: a context, horizon or number of starts below one.
        ReplayError: the replay holds no stretch of one episode as long as the context.
    """
    for name, value in (("context", context), ("horizon", horizon), ("starts", starts)):
        if value < 1:
            raise InvalidInputError(f"{name}: expected at least 1, got {value}.")
    windows = draw_windows(replay, context, horizon, starts, life_loss_ends, np.random.default_rng(seed))
    generator = torch.Generator(device=world_model.device)
    generator.manual_seed(seed)
    codes = _encode(world_model, replay, windows.indices)
    actions = real_acts(world_model, replay, windows.acted)
    elapsed = torch.as_tensor(replay.elapsed_at(windows.indices[:, 0]), device=world_model.device)
    dream = open_loop(world_model, codes[:, :context], actions, generator, codes[:, context:], temperature, elapsed)
    rewards = dream.rewards.double().cpu().numpy()
    ends = dream.ends.double().cpu().numpy()
    happened = slice(MARGIN, -MARGIN)
    return {
        **_code_metrics(dream, codes, windows),
        **event_metrics(windows, rewards, ends),
        **_pixel_metrics(world_model, replay, dream.latents[:, :horizon], codes, windows),
        "windows_uniform": float(windows.uniform),
        "windows_event": float(windows.event),
        "windows_end": float(len(windows.indices) - windows.uniform - windows.event),
        "events_lost": float((windows.rewards[:, happened] == -1).sum()),
        "events_won": float((windows.rewards[:, happened] == 1).sum()),
        "events_end": float(windows.ends[:, happened].sum()),
    }


def _encode(world_model: WorldModel, replay: Replay, indices: IntArray) -> Tensor:
    """Codes of the records, int64 (*indices.shape, ...): each record once, in chunks that bound the memory."""
    unique, inverse = np.unique(indices, return_inverse=True)
    chunks = [
        world_model.encode(replay.frames_at(unique[start : start + 512], stack=world_model.frame_stack))
        for start in range(0, len(unique), 512)
    ]
    return torch.cat(chunks)[torch.as_tensor(inverse.reshape(indices.shape), device=world_model.device)]


def _code_metrics(dream: OpenLoop, codes: Tensor, windows: HeldOutWindows) -> dict[str, float | list[float]]:
    """What was drawn and how likely the truth was, cell by cell, of the uniform windows."""
    count = windows.uniform
    truth = codes[:count, windows.context :]
    same = (dream.latents[:count, : truth.shape[1]] == truth).flatten(2).double().mean(2).cpu().numpy()
    surprise = -dream.log_likelihood[:count].double().cpu().numpy()
    real = windows.frames_real[:count, windows.context :]
    # A late step can lie behind the end of every window's episode: the curves then stop before it.
    known = int(real.any(axis=0).sum())
    metrics: dict[str, float | list[float]] = {}
    for name, values in (("code_accuracy", same), ("code_nll", surprise)):
        by_step = [float(values[real[:, step], step].mean()) for step in range(known)]
        metrics[name] = by_step
        metrics |= {f"{name}_{step}": by_step[step - 1] for step in REPORT_STEPS if step <= known}
    seen = truth[torch.as_tensor(real, device=truth.device)].flatten(1).cpu().numpy()
    return metrics | ({"code_nll_marginal": _marginal_entropy(seen)} if known else {})


def _marginal_entropy(codes: IntArray) -> float:
    """Entropy of each cell's own code frequencies, (frames, cells), in nats; its mean over the cells."""
    entropy = 0.0
    for cell in codes.T:
        chances = np.unique(cell, return_counts=True)[1] / len(cell)
        entropy -= float((chances * np.log(chances)).sum())
    return entropy / codes.shape[1]


def _pixel_metrics(
    world_model: WorldModel, replay: Replay, dreamt: Tensor, codes: Tensor, windows: HeldOutWindows
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
