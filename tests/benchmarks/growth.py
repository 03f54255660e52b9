"""How cost grows: with dreams at once, with the replay, with the length of a window, with the model's width."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from measures import Result, Stopwatch, Workload, exponent
from workloads import Bench

from dreamgym.device import bf16_is_faster
from dreamgym.fit import FitConfig
from dreamgym.models.dynamics import ConvLSTM, ConvLSTMConfig
from dreamgym.models.losses import latent_cross_entropy
from dreamgym.replay import Replay
from dreamgym.surprise import SurpriseWindows

_EPISODE = 500
"""Records of an episode of the replay that windows are drawn from."""

_CODES, _ACTIONS, _EMBEDDING = 128, 6, (32, 6, 6)
"""Of the networks whose width and windows grow: those of the paper."""


def dreams(results: Sequence[Result], envs: Sequence[int]) -> float:
    """The exponent of a step of all dreams in how many there are, from the steps measured."""
    return exponent(envs, [count * result.seconds for count, result in zip(envs, results, strict=True)])


def replay(
    watch: Stopwatch, bench: Bench, sizes: Sequence[int], batch: int, length: int
) -> tuple[dict[str, float], dict[int, list[Result]]]:
    """Drawing a batch of windows and their latents, by how many records there are.

    Args:
        watch: takes the times.
        bench: whose settings windows are drawn by.
        sizes: records, ascending.
        batch: windows.
        length: records a window.

    Returns:
        (exponents by how windows are drawn, results by size). Each result's items are updates' batches.
    """
    records, found = Replay(max(sizes), (1, 1)), dict[int, list[Result]]()
    kinds: dict[str, list[float]] = {}
    for size in sizes:
        _fill(records, size)
        draws = _draws(records, bench.config.fit, batch, length)
        table = torch.zeros(size, *bench.model.codec.latent_shape, dtype=torch.uint8)
        workloads = [
            Workload(f"windows drawn, {name}, of {size:,} records", 1, _gathering(draw, table), "batches")
            for name, draw in draws.items()
        ]
        found[size] = watch.measure(*workloads)
        for name, result in zip(draws, found[size], strict=True):
            kinds.setdefault(name, []).append(result.seconds)
    return {name: exponent(sizes, seconds) for name, seconds in kinds.items()}, found


def lengths(watch: Stopwatch, steps: Sequence[int], batch: int, hidden: int) -> float:
    """The exponent of a ConvLSTM's update in its windows' length."""
    model = _dynamics(hidden).to(watch.device)
    results = watch.measure(
        *(Workload(f"update of windows of {time} steps", 1, _update(model, batch, time), "updates") for time in steps)
    )
    return exponent(steps, [result.seconds for result in results])


def widths(watch: Stopwatch, channels: Sequence[int], batch: int) -> float:
    """The exponent of a ConvLSTM's step in its hidden channels."""
    results = watch.measure(
        *(
            Workload(f"step of {batch} dreams, {hidden} channels", batch, _step(_dynamics(hidden), batch, watch.device))
            for hidden in channels
        )
    )
    return exponent(channels, [result.seconds for result in results])


def _fill(records: Replay, size: int) -> None:
    """Append to a replay until it holds so many records, in episodes with a reward at the end of each."""
    frame = np.zeros((1, 1), np.uint8)
    for index in range(len(records), size):
        last = index % _EPISODE == _EPISODE - 1
        records.append(frame, 0, float(last), last, False, False, index % _EPISODE == 0)


def _draws(records: Replay, fit: FitConfig, batch: int, length: int) -> dict[str, Callable[[], Any]]:
    """How windows may be drawn, by name."""
    rng = np.random.default_rng(0)
    records.prioritise_events(length - 1, 4.0, 0)
    surprise = SurpriseWindows(
        fit.surprise_limit, fit.surprise_power, fit.surprise_settling, fit.rare_share, fit.even_share
    )
    surprise.follow(records)
    surprise.rate(rng.random(len(records)))
    return {
        "uniform": lambda: records.sample_windows(batch, length, rng, prioritised=True),
        "balanced": lambda: records.sample_windows(batch, length, rng, weights="balanced", prioritised=True),
        "surprise": lambda: surprise.draw(records, batch, length, rng),
    }


def _gathering(draw: Callable[[], Any], table: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: table[torch.as_tensor(draw().indices)]


def _dynamics(hidden: int) -> ConvLSTM:
    config = replace(ConvLSTMConfig(), hidden=hidden)
    return ConvLSTM(config, _EMBEDDING, _CODES, _ACTIONS)


def _step(model: ConvLSTM, batch: int, device: torch.device) -> Callable[[], None]:
    model = model.to(device).eval()
    features, actions = torch.randn(batch, *_EMBEDDING, device=device), torch.zeros(batch, dtype=torch.int64)
    actions, state = actions.to(device), model.initial_state(batch)

    @torch.no_grad()
    def act() -> None:
        nonlocal state
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_faster(device.type)):
            state = model.step(features, actions, state)[1]

    return act


def _update(model: ConvLSTM, batch: int, time: int) -> Callable[[], None]:
    device = model.latent_head.weight.device
    features = torch.randn(batch, time, *_EMBEDDING, device=device)
    actions = torch.zeros(batch, time, dtype=torch.int64, device=device)
    latents = torch.zeros(batch, time, *_EMBEDDING[1:], dtype=torch.int64, device=device)

    def act() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_faster(device.type)):
            prediction, _ = model.sequence(features, actions, model.initial_state(batch))
        latent_cross_entropy(prediction.latent, latents).mean().backward()
        model.zero_grad(set_to_none=True)

    return act
