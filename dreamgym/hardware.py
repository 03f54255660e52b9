"""What a machine is and how fast it multiplies matrices: the measure that every time is printed beside."""

import platform
import time
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
