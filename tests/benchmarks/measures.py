"""How work is timed: in turns, beside the machine's rate of matrix products, several times, and the median told."""

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dreamgym.device import bf16_is_faster
from dreamgym.hardware import forget_peak_memory, most_memory

_BESIDE = 0.05
"""Seconds for which matrices are multiplied beside every timing, at least."""

_SIDE = 2048
"""Of these matrices, as of those by which :func:`dreamgym.hardware.matmul_rates` tells a machine's rate."""


@dataclass(frozen=True)
class Workload:
    """Something that is done over and over.

    Attributes:
        name: what it is, and of how many at once.
        items: how many of its ``unit`` one call handles.
        act: the call.
        unit: what is counted: steps, frames, samples.
        operations: floating-point operations of an item; None counts those of a call. Where they are done with less
            arithmetic than the layers ask for as they are written, see :func:`written_operations`.
    """

    name: str
    items: int
    act: Callable[[], Any]
    unit: str = "steps"
    operations: float | None = None


@dataclass(frozen=True)
class Result:
    """What came of a workload.

    Attributes:
        name: of the workload.
        unit: of its items.
        rate: items a second, the median of the rounds.
        gflops: 10^9 operations of convolutions and matrix products a second, as counted from the model.
        share: the median of ``gflops`` by the rate of bfloat16 matrix products beside it; of float32 ones where the
            hardware has no bfloat16.
        memory: most bytes that the process held, everything else in it included.
        gpu_memory: most bytes held on the graphics card; 0 without one.
    """

    name: str
    unit: str
    rate: float
    gflops: float
    share: float
    memory: int
    gpu_memory: int = 0

    @property
    def seconds(self) -> float:
        """Of one item."""
        return 1 / self.rate


class Stopwatch:
    """Times workloads on a device.

    Args:
        device: where they compute.
        seconds: least time for which each is repeated in a round.
        rounds: how often; what is told is the median.
    """

    def __init__(self, device: torch.device, seconds: float, rounds: int = 3) -> None:
        self.device, self.seconds, self.rounds = device, seconds, rounds
        self.results: list[Result] = []
        fastest = torch.bfloat16 if bf16_is_faster(device.type) else torch.float32
        self._matrix = torch.ones(_SIDE, _SIDE, dtype=fastest, device=device)
        self._products = Workload("matrix products", 2 * _SIDE**3, lambda: torch.mm(self._matrix, self._matrix), "FLOP")

    def measure(self, *workloads: Workload) -> list[Result]:
        """Time workloads in turns, so that what slows the machine down for a while slows all of them."""
        operations = [self._operations(each) for each in workloads]
        rates: list[list[float]] = [[] for _ in workloads]
        shares: list[list[float]] = [[] for _ in workloads]
        held: list[dict[str, int]] = [{} for _ in workloads]
        for _ in range(self.rounds):
            for index, workload in enumerate(workloads):
                products = self._rate(self._products, _BESIDE)
                forget_peak_memory(self.device)
                rates[index].append(self._rate(workload, self.seconds))
                shares[index].append(rates[index][-1] * operations[index] / products)
                held[index] = most_memory(self.device)
        found: list[Result] = []
        for index, workload in enumerate(workloads):
            rate = statistics.median(rates[index])
            gflops, share = rate * operations[index] / 1e9, statistics.median(shares[index])
            found.append(Result(workload.name, workload.unit, rate, gflops, share, **held[index]))
            print(line(found[-1]), flush=True)
        self.results += found
        return found

    def _operations(self, workload: Workload) -> float:
        """Floating-point operations of an item; the call that counts them warms up, too."""
        with FlopCounterMode(display=False) as counter:
            workload.act()
        self._wait()
        counted = counter.get_total_flops() / workload.items
        return counted if workload.operations is None else workload.operations

    def _rate(self, workload: Workload, seconds: float) -> float:
        """Items a second, over at least so many seconds and one call."""
        calls, started = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - started < seconds:
            workload.act()
            self._wait()
            calls += 1
        return workload.items * calls / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def written_operations(model: nn.Module, act: Callable[[], Any]) -> float:
    """Floating-point operations of a call, of convolutions and linear layers as they are written.

    Layers may be computed with less arithmetic, padding left out for one. A rate by what is done then would fall where
    the work is done faster.

    Args:
        model: whose layers are counted as they are called.
        act: what calls them.
    """
    total = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = cast(Tensor, layer.weight)
        total += 2 * output.numel() * weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    act()
    for hook in hooks:
        hook.remove()
    return float(total)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size with which a time grows: the slope of a line through both logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def heading() -> str:
    """Of the table."""
    return f"{'what':<58}{'a second':>12}{'':<9}{'GFLOP/s':>9}{'share':>7}{'memory':>9}"


def line(result: Result) -> str:
    """A row of the table; what multiplies nothing has no share."""
    share = f"{result.gflops:>9,.0f}{result.share:>7.2f}" if result.gflops else f"{'-':>9}{'-':>7}"
    held = (result.gpu_memory or result.memory) / 1e9
    return f"{result.name:<58}{result.rate:>12,.1f}{' ' + result.unit:<9}{share}{held:>6.2f} GB"


def write(path: Path, facts: dict[str, Any], results: Sequence[Result]) -> None:
    """Everything as JSON: ``facts``, and ``rates`` by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rates = {each.name: {key: value for key, value in asdict(each).items() if key != "name"} for each in results}
    path.write_text(json.dumps({**facts, "rates": rates}, indent=2) + "\n")


def ratio(left: Result, right: Result) -> float:
    """How many items of the left are handled while one of the right is; NaN where neither is measurable."""
    return left.rate / right.rate if right.rate else math.nan
