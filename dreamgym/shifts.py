"""Frames moved up or down: what is known of a ball at one height is made known at others.

A latent shows a thing by codes that depend on where in its cell it is; to the dynamics a ball two pixels higher is
another code, of which nothing is known until it was seen. Showing them the same experience in other places is the
random shift of Kostrikov et al. 2021 ("Image augmentation is all you need"), here one for all frames of a window and
vertical: games are played between walls that are moved along.

Every frame is encoded once for each shift within a cell; by whole cells the latents themselves are moved, since the
encoder is the same convolution everywhere but at the frame's edges.
"""

import torch
from torch import Tensor


def draw_shifts(
    count: int, largest: int, share: float, generator: torch.Generator | None = None, *, step: int = 1
) -> Tensor:
    """Draw by how many rows images are moved.

    Args:
        count: of images.
        largest: number of rows, up or down.
        share: of the images whose shift is drawn, evenly and 0 among them; the others' is 0.
        generator: of the draws, on the CPU.
        step: all shifts are multiples of this.

    Returns:
        (count,) int64 in [-largest, largest].
    """
    steps = largest // step
    shifts = step * torch.randint(-steps, steps + 1, (count,), generator=generator)
    return shifts * (torch.rand(count, generator=generator) < share)


def shift_rows(images: Tensor, shifts: Tensor) -> Tensor:
    """Move images down by their shifts (up where negative); the outermost row fills the gap.

    Args:
        images: (count, channels, height, width), or latents (count, time, height, width).
        shifts: (count,) int64.

    Returns:
        The same shape.
    """
    height = images.shape[2]
    rows = torch.arange(height, device=images.device) - shifts.to(images.device)[:, None]
    rows = rows.clamp(0, height - 1)[:, None, :, None]
    return torch.gather(images, 2, rows.expand(-1, images.shape[1], -1, images.shape[3]))


def moved_latents(tables: Tensor, indices: Tensor, shifts: Tensor, cell: int) -> Tensor:
    """Look up latents of frames that were moved.

    Args:
        tables: (phases, records, height, width): the latents of all frames moved down by 0, cell / phases, 2 cell /
            phases ... rows.
        indices: (batch, time) int64, the records wanted.
        shifts: (batch,) int64, rows by which the frames of each window are moved down, multiples of cell / phases.
        cell: rows of a frame that one row of a latent shows.

    Returns:
        (batch, time, height, width). What a shift of whole cells leaves open is filled with the outermost row of the
        frames as they are: what is moved out of a frame's last rows must not be seen there a second time.
    """
    phases = shifts.remainder(cell)
    cells = (shifts - phases) // cell
    moved = shift_rows(tables[(phases * len(tables) // cell)[:, None], indices], cells)
    height = tables.shape[2]
    sources = torch.arange(height) - cells[:, None]
    outside = ((sources < 0) | (sources >= height))[:, None, :, None]
    return torch.where(outside, shift_rows(tables[0][indices], cells), moved)
