"""Frames moved up or down: what is known of a ball at one height is made known at others.

A latent shows a thing by codes that depend on where in its cell it is; to the dynamics a ball two pixels higher is
another code, of which nothing is known until it was seen. Showing them the same experience in other places is the
random shift of Kostrikov et al. 2021 ("Image augmentation is all you need"), here one for all frames of a window and
vertical: games are played between walls that are moved along.
"""

import torch
from torch import Tensor


def draw_shifts(count: int, largest: int, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw by how many rows images are moved.

    Args:
        count: of images.
        largest: number of rows, up or down.
        share: of the images whose shift is drawn, evenly and 0 among them; the others' is 0.
        generator: of the draws, on the CPU.

    Returns:
        (count,) int64 in [-largest, largest].
    """
    shifts = torch.randint(-largest, largest + 1, (count,), generator=generator)
    return shifts * (torch.rand(count, generator=generator) < share)


def shift_rows(images: Tensor, shifts: Tensor) -> Tensor:
    """Move images down by their shifts (up where negative); the outermost row fills the gap.

    Args:
        images: (count, channels, height, width).
        shifts: (count,) int64.

    Returns:
        The same shape.
    """
    height = images.shape[2]
    rows = torch.arange(height, device=images.device) - shifts.to(images.device)[:, None]
    rows = rows.clamp(0, height - 1)[:, None, :, None]
    return torch.gather(images, 2, rows.expand(-1, images.shape[1], -1, images.shape[3]))
