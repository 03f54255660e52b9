"""What all fits share: learning rates that fall, a progress bar, means of metrics, and dropout that can be repeated."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Report = dict[str, float]


def parameter_group(parameters: list[nn.Parameter], rate: float, decay: float) -> dict[str, Any]:
    """An optimiser's group of parameters; ``rate`` is what :func:`set_rate` starts from."""
    return {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}


def set_rate(optimizer: torch.optim.Optimizer, start: float, done: float, final: float) -> None:
    """Half cosine from ``start`` (times the group's own rate, where it has one) to ``final`` of it."""
    factor = start * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
    for group in optimizer.param_groups:
        group["lr"] = factor * group.get("initial_lr", 1.0)


@contextmanager
def seeded_dropout(device: torch.device, generator: torch.Generator) -> Generator[None]:
    """Let dropout, which knows no generator but the global ones, draw from one of ours."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


class Tracker:
    """Means of metrics over the last tenth of the updates, without a device sync before the end."""

    def __init__(self, updates: int) -> None:
        """Of so many updates."""
        self._from = updates - max(1, updates // 10)
        self._kept: list[dict[str, Tensor]] = []

    def keeps(self, update: int) -> bool:
        """Whether that update's metrics will be looked at."""
        return update >= self._from

    def add(self, update: int, metrics: dict[str, Tensor]) -> None:
        """Note what an update measured, all of them scalars."""
        if self.keeps(update):
            self._kept.append(metrics)

    def report(self, prefix: str) -> Report:
        """The means, their names after a prefix."""
        if not self._kept:
            return {}
        return {prefix + name: float(torch.stack([m[name] for m in self._kept]).mean()) for name in self._kept[0]}
