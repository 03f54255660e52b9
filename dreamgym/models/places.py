"""Where a code was seen in real experience: elsewhere it is hardly ever drawn.

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

_SEVERAL = 3
"""Cells of a row or column, alike in their background, that make a code one of all such cells in it."""

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


def likely_codes(seen: Tensor, rest: Tensor, wraps: bool) -> Tensor:
    """Which codes are drawn where, as :func:`seen_codes`: those that a cell, or cells like it, had.

    A ball is seen in few of its places in a cell, and in all of them in a cell or the next: a code that one of the
    eight neighbours had is drawn. Where balls leave the screen few were ever seen: so is a code that several cells of a
    row or column had, wherever in it the background is theirs.

    Args:
        seen: (height, width, num_codes) bool.
        rest: (height, width) int64, the codes of the background.
        wraps: whether cells at opposite edges are neighbours.
    """
    found = _around(seen, wraps)
    for ground in torch.unique(rest):
        there = (rest == ground)[..., None]
        for axis in (0, 1):
            found |= there & ((seen & there).sum(dim=axis, keepdim=True) >= _SEVERAL)
    return found


def _around(seen: Tensor, wraps: bool) -> Tensor:
    """Which codes a cell or one of its eight neighbours had, as :func:`seen_codes`."""
    maps = seen.float().permute(2, 0, 1)[None]
    padded = F.pad(maps, (1, 1, 1, 1), mode="circular") if wraps else F.pad(maps, (1, 1, 1, 1))
    return F.max_pool2d(padded, 3, stride=1)[0].permute(1, 2, 0) > 0
