"""Where a code was seen in real experience: nothing else is drawn there.

The chance of what was never seen is small and not none, and a dream takes thousands of steps: once half of a paddle
flies through the field as a ball does, nothing that the dynamics learned says how it is to end.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

UNSEEN = 10.0
"""By which the score of a code is less where it was not seen: what is not in the data has some chance, but little."""

_CHUNK = 4_096
"""Latents that are counted at once."""


def seen_codes(latents: npt.NDArray[np.uint8], num_codes: int) -> Tensor:
    """Which codes each cell ever had.

    Args:
        latents: (steps, height, width).
        num_codes: codes of a cell.

    Returns:
        (height, width, num_codes) bool.
    """
    _, height, width = latents.shape
    cells = num_codes * np.arange(height * width).reshape(height, width)
    counts = np.zeros(height * width * num_codes, np.int64)
    for start in range(0, len(latents), _CHUNK):
        index = (latents[start : start + _CHUNK] + cells).ravel()
        counts += np.bincount(index, minlength=len(counts))
    return torch.from_numpy(counts > 0).view(height, width, num_codes)


def around(seen: Tensor, wraps: bool) -> Tensor:
    """Which codes a cell or one of its eight neighbours had, as :func:`seen_codes`.

    A ball is seen in few of its places in a cell, and in all of them in a cell or the next.

    Args:
        seen: (height, width, num_codes) bool.
        wraps: whether cells at opposite edges are neighbours.
    """
    maps = seen.float().permute(2, 0, 1)[None]
    padded = F.pad(maps, (1, 1, 1, 1), mode="circular") if wraps else F.pad(maps, (1, 1, 1, 1))
    return F.max_pool2d(padded, 3, stride=1)[0].permute(1, 2, 0) > 0
