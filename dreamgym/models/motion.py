"""What a latent would be if all that has just moved went on: block matching, as video codecs do it.

A code stands for a small picture, and a thing that flies at one speed shows itself in another code at every step: what
a network on the grid of cells learns of one place inside a cell and one speed tells it nothing of the others. On the
grid of pixels all of them are the same. What is new in a latent is looked for among what was there in the latent before
(exhaustive block matching by the sum of squared differences, Jain and Jain 1981), and drawn again as far behind.
Nothing is learned here; the dynamics are shown the outcome as one more latent, and learn when it is right. It is wrong
where something bounces, and where it still covers a part of its former place: what is new is then only its front.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 7
"""Pixels that a thing may move in a step, up and down and to both sides."""

_MARGIN = 2
"""Pixels around a cell that are compared with it: a thing may lie in two cells."""

_VISIBLE = 0.12
"""Of white: pixels that differ by less look alike."""

_AT_ONCE = 1_024
"""Cells whose pictures are compared with all sprites at once."""

_EXPLAINED = 0.3
"""Share of what is new that has to be found again, else it has not moved but come."""


def moved_on(older: Tensor, newest: Tensor, sprites: Tensor, rest: Tensor, wraps: bool) -> Tensor:
    """The latent that would come next if everything went on.

    Args:
        older: (batch, height, width) int64, z_{t-1}; codes beyond the last sprite were not seen, and move nothing.
        newest: (batch, height, width) int64, z_t.
        sprites: (codes, cell, cell) float32, what a code shows that the background does not, in [-1, 1].
        rest: (height, width) int64, the codes of the background.
        wraps: whether what leaves at one edge comes in at the other.

    Returns:
        (batch, height, width) int64: z_t, with the codes of what went on.
    """
    batch, height, width = newest.shape
    codes, side = sprites.shape[:2]
    rows, columns = height * side, width * side
    cells = ((older != newest) & (older < codes)).nonzero()
    before = sprites[older[tuple(cells.T)]]
    now = sprites[newest[tuple(cells.T)]]
    changed = (before - now).abs() > _VISIBLE
    came = torch.where(changed & (now.abs() > _VISIBLE), now, 0.0)
    left = torch.where(changed & (before.abs() > _VISIBLE), before, 0.0)
    new, old = (_drawn(part, cells, newest.shape) for part in (came, left))

    # Only what shows something new can go on.
    moving = came.flatten(1).abs().amax(dim=1) > 0
    cells, came = cells[moving], came[moving]
    if len(cells) == 0:
        return newest.clone()
    corner = cells[:, 1:] * side - _MARGIN
    block = side + 2 * _MARGIN
    blocks = _squares(new, cells[:, 0], corner, block, wraps)
    area = _squares(old, cells[:, 0], corner - REACH, block + 2 * REACH, wraps)
    # |block|^2 less the sum of squared differences: what a place explains.
    likeness = F.conv2d(area[None], blocks[:, None], groups=len(cells))[0]
    explained = 2 * likeness - block**2 * F.avg_pool2d(area.square()[None], block, stride=1)[0]
    best, place = explained.flatten(1).max(dim=1)
    found = best > _EXPLAINED * blocks.square().sum(dim=(1, 2))
    steps = 2 * REACH + 1
    # Found up and to the left, it goes down and to the right.
    step = REACH - torch.stack([place // steps, place % steps], dim=1)
    cells, came, step = cells[found], came[found], step[found]

    # Where the pixels of what moves go.
    which, row, column = (came != 0).nonzero().unbind(1)
    row_to = cells[which, 1] * side + row + step[which, 0]
    column_to = cells[which, 2] * side + column + step[which, 1]
    value = came[which, row, column]
    if not wraps:
        inside = (row_to >= 0) & (row_to < rows) & (column_to >= 0) & (column_to < columns)
        which, row_to, column_to, value = (part[inside] for part in (which, row_to, column_to, value))
    row_to, column_to = row_to % rows, column_to % columns
    target = (cells[which, 0] * rows + row_to) * columns + column_to
    drawn = new.new_zeros(batch * rows * columns).index_add(0, target, value)

    # The cells that something leaves or enters, and the codes that show best what is in them then.
    leaves = torch.zeros_like(newest)
    leaves[tuple(cells.T)] = 1 + torch.arange(len(cells), device=cells.device)
    touched = leaves > 0
    touched[cells[which, 0], row_to // side, column_to // side] = True
    shown = touched.nonzero()
    where = tuple(shown.T)
    kept = sprites[newest[where]] - F.pad(came, (0, 0, 0, 0, 1, 0))[leaves[where]]
    entered = _squares(drawn.view(batch, rows, columns), shown[:, 0], shown[:, 1:] * side, side, wraps)
    picture = torch.where(entered != 0, entered, kept).flatten(1)
    something = picture.abs().amax(dim=1) > _VISIBLE
    going_on = rest[where[1:]]
    going_on[something] = _nearest(picture[something], sprites.flatten(1))
    result = newest.clone()
    result[where] = going_on
    return result


def _drawn(pictures: Tensor, cells: Tensor, shape: torch.Size) -> Tensor:
    """Pictures (count, cell, cell) of some cells, the others blank, as frames (batch, height * cell, width * cell)."""
    blank = pictures.new_zeros(*shape, *pictures.shape[1:])
    blank[tuple(cells.T)] = pictures
    return blank.transpose(2, 3).flatten(1, 2).flatten(2)


def _nearest(pictures: Tensor, sprites: Tensor) -> Tensor:
    """Which sprite (codes, pixels) is nearest to each picture (count, pixels): (count,) int64.

    Some at a time: where everything moves there are many. Not by a product: its last bits depend on how many there are.
    """
    parts = [(part[:, None] - sprites).square().sum(dim=2).argmin(dim=1) for part in pictures.split(_AT_ONCE)]
    return torch.cat(parts)


def _squares(frames: Tensor, batch: Tensor, corner: Tensor, side: int, wraps: bool) -> Tensor:
    """Squares of frames (count, side, side), by batch (count,) and upper left corner (count, 2).

    Beyond the edge there is the other edge, or nothing.
    """
    offsets = torch.arange(side, device=frames.device)
    if not wraps:
        margin = REACH + _MARGIN
        frames, corner = F.pad(frames, (margin,) * 4), corner + margin
    rows, columns = ((corner[:, axis, None] + offsets) % frames.shape[1 + axis] for axis in (0, 1))
    return frames[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
