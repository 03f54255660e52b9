"""The things of a latent, one after the other, instead of the cells that show them."""

from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.models.motion import Moving
from dreamgym.models.patches import BLOCK


class Things(NamedTuple):
    """The things of a :class:`dreamgym.models.motion.Moving`, one after the other, filled up to whole blocks.

    In products of few rows the last bits of one depend on how many there are.
    """

    number: int
    """Of things."""
    cell: Tensor
    """(number + filling,) int64: the first cell of each, which stands for it."""
    thing: Tensor
    """(cells,) int64: which thing each cell shows."""
    centre: Tensor
    """(number + filling, 2) int64: row and column of the centre of mass, in pixels."""
    mass: Tensor
    """(number + filling,) float32: sum of what its pixels differ from the background."""


def find_things(moving: Moving, size: tuple[int, int]) -> Things:
    """Put together the cells that show the same thing, in frames of ``size`` pixels."""
    cells, shown = moving.cells, moving.shown.abs()
    first, thing = torch.unique(moving.thing, return_inverse=True)
    side = shown.shape[1]
    grid = torch.tensor([size[0] // side, size[1] // side], device=cells.device)
    # Cells on both sides of an edge of the grid show one thing where they are neighbours: counted from its first.
    corner = cells[first, 1:]
    away = (cells[:, 1:] - corner[thing] + grid // 2) % grid - grid // 2
    line = torch.arange(side, device=cells.device)
    mass = shown.sum(dim=(1, 2))
    row = (shown.sum(dim=2) * line).sum(dim=1) + mass * away[:, 0] * side
    column = (shown.sum(dim=1) * line).sum(dim=1) + mass * away[:, 1] * side
    sums = torch.zeros(len(first), 3, device=mass.device).index_add(0, thing, torch.stack([mass, row, column], dim=1))
    filled = torch.cat([torch.arange(len(first)), torch.zeros(-len(first) % BLOCK, dtype=torch.int64)]).to(cells.device)
    centre = (corner * side + (sums[:, 1:] / sums[:, :1] + 0.5).floor().long()) % (grid * side)
    return Things(len(first), first[filled], thing, centre[filled], sums[filled, 0])
