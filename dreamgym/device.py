"""Which device to compute on: chosen once, said aloud, never silently another one."""

from functools import cache
from typing import cast

import torch

from dreamgym.errors import DeviceError


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Turn a device name into a device that exists.

    Args:
        name: ``"auto"`` (CUDA if there is one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``.

    Returns:
        The device.

    Raises:
        DeviceError: the name is not a device's, or CUDA is asked for and this machine or build has none.
    """
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:<index>', got {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:<index>', got {name!r}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                f"device {str(name)!r}: this machine or this build of torch has no CUDA; use device='cpu'."
            )
        index = cast("int | None", device.index)
        if index is not None and index >= torch.cuda.device_count():
            raise DeviceError(f"device {str(name)!r}: expected an index below {torch.cuda.device_count()}.")
    return device


@cache
def bf16_is_faster(kind: str) -> bool:
    """Whether this hardware multiplies matrices in bfloat16, which is then faster than float32.

    A property of the hardware, not a timing, so that every process of a run decides alike.

    Args:
        kind: "cpu" or "cuda". Processors without bfloat16 units emulate it, many times slower.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    able = torch.cpu.get_capabilities()
    return any(bool(able.get(unit, False)) for unit in ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16"))
