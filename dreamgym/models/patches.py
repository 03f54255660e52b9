"""Few cells of many maps, and the squares around them."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""Rows come in multiples of so many: in products of few rows the last bits of one depend on how many there are."""


def pad_maps(maps: Tensor, reach: int, value: int) -> Tensor:
    """(batch, height, width) with ``reach`` cells of ``value`` on every side."""
    return F.pad(maps, (reach,) * 4, value=value)


def wrap_maps(maps: Tensor, reach: int) -> Tensor:
    """(batch, height, width) with the ``reach`` cells of the opposite edge on every side."""
    rows, columns = (torch.arange(-reach, size + reach, device=maps.device) % size for size in maps.shape[1:])
    return maps.index_select(1, rows).index_select(2, columns)


def places_around(cells: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Where the cells around (count, 3) are in a flattened padded map: (count, (2 reach + 1)^2)."""
    batch, row, column = cells.unbind(1)
    side = torch.arange(2 * reach + 1, device=cells.device)
    offsets = (side[:, None] * width + side).flatten()
    return ((batch * height + row) * width + column)[:, None] + offsets


def places_around_wrapped(cells: Tensor, height: int, width: int, reach: int) -> Tensor:
    """The same in a flattened map without padding, whose opposite edges are neighbours."""
    batch, row, column = cells.unbind(1)
    side = torch.arange(-reach, reach + 1, device=cells.device)
    rows, columns = (row[:, None] + side) % height, (column[:, None] + side) % width
    return ((batch[:, None] * height + rows)[:, :, None] * width + columns[:, None]).flatten(1)
