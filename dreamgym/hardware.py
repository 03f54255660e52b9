"""What a machine is, how fast it multiplies matrices, the measure that every time is printed beside, and its memory."""

import importlib
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from dreamgym.device import bf16_is_faster

_SMALL = 256
"""Side of the products of a type that the hardware emulates: at 1 GFLOP/s one of 2048^3 is 17 seconds' work."""


def matmul_rates(device: torch.device, size: int = 2048, seconds: float = 0.2) -> dict[str, float]:
    """Rate of square matrix products, after warm-up.

    Args:
        device: where.
        size: rows and columns; at most 256 for bfloat16 where the hardware emulates it.
        seconds: least time measured per type.

    Returns:
        GFLOP/s by type, "float32" and "bfloat16".
    """
    rates: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        emulated = dtype == torch.bfloat16 and not bf16_is_faster(device.type)
        side = min(size, _SMALL) if emulated else size
        left = torch.ones(side, side, dtype=dtype, device=device)
        right = torch.ones(side, side, dtype=dtype, device=device)
        for _ in range(3):
            torch.mm(left, right)
        _wait(device)
        count, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or count == 0:
            torch.mm(left, right)
            _wait(device)
            count += 1
        rates[name] = 2 * side**3 * count / elapsed / 1e9
    return rates


def describe_machine(device: torch.device) -> str:
    """Processor or graphics card, threads, and versions in one line."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def peak_memory() -> int:
    """The most bytes that this process has held, a graphics card's aside; 0 where the system does not say (Windows)."""
    if sys.platform == "win32":
        return 0
    resource = importlib.import_module("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak_memory(device: torch.device) -> None:
    """Let :func:`most_memory` count from now on; where the system knows no such thing it goes on from the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def most_memory(device: torch.device) -> dict[str, int]:
    """The most bytes held since :func:`forget_peak_memory`: ``memory``, and on a graphics card ``gpu_memory``."""
    held = {"memory": peak_memory()}
    return held | ({"gpu_memory": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
