"""What a latent would be if all that has just moved went on: block matching, as video codecs do it.

A code stands for a small picture, and a thing that flies at one speed shows itself in another code at every step: what
a network on the grid of cells learns of one place inside a cell and one speed tells it nothing of the others. On the
grid of pixels all of them are the same. What is new in a latent is looked for among what was there in the latent before
(exhaustive block matching by the sum of squared differences, Jain and Jain 1981), and drawn again as far behind.
Nothing is learned here; the dynamics are shown the outcome as one more latent, and learn when it is right. It is wrong
where something bounces, and where it still covers a part of its former place: what is new is then only its front.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.patches import places_around, places_around_wrapped

REACH = 7
"""Pixels that a thing may move in a step, up and down and to both sides."""

_MARGIN = 2
"""Pixels around a cell that are compared with it: a thing may lie in two cells."""

_VISIBLE = 0.12
"""Of white: pixels that differ by less look alike."""

_AT_ONCE = 1_024
"""Cells whose pictures are compared with all sprites at once."""

_ALIKE = 0.5
"""Least likeness of a thing and what is taken for it elsewhere: twice their product over the sum of their squares."""

STEPS = (2 * REACH + 1) ** 2
"""Steps that are told apart, the one in the middle none at all; one more stands for what is not to be found."""

_SHORTER = 1e-3
"""By which the longest step is less alike: along a bar many are alike, and the shortest of them is taken."""

_BRIGHTER = 0.15
"""Of white: things that differ by more in their brightest pixels are others."""


class Moving(NamedTuple):
    """What a latent shows that was not there before, cell by cell."""

    cells: Tensor
    """(count, 3) int64: batch, row, column."""
    came: Tensor
    """(count, cell, cell) float32: the pixels that are new there, 0 for others."""
    step: Tensor
    """(count,) int64: :func:`step_number` of how it came there from the latent before; ``STEPS`` if it was nowhere."""
    thing: Tensor
    """(count,) int64: the first of the cells that show the same thing."""

    def steps(self, latent: Tensor) -> Tensor:
        """The steps as a map like ``latent``, (batch, height, width) int64; ``STEPS`` where nothing moves."""
        return torch.full_like(latent, STEPS).index_put(tuple(self.cells.T), self.step)


def step_number(step: Tensor) -> Tensor:
    """Number of a step of (..., 2) pixels, down and to the right, each from -``REACH`` to ``REACH``."""
    return (step[..., 0] + REACH) * (2 * REACH + 1) + step[..., 1] + REACH


def step_pixels(number: Tensor) -> Tensor:
    """The reverse of :func:`step_number`: (..., 2) int64."""
    side = 2 * REACH + 1
    return torch.stack([number // side, number % side], dim=-1) - REACH


def find_moving(older: Tensor, newest: Tensor, sprites: Tensor, wraps: bool, steps: Tensor | None = None) -> Moving:
    """What is new in a latent, and where it was before.

    Args:
        older: (batch, height, width) int64, z_{t-1}; codes beyond the last sprite were not seen, and move nothing.
        newest: (batch, height, width) int64, z_t.
        sprites: (codes, cell, cell) float32, what a code shows that the background does not, in [-1, 1].
        wraps: whether cells at opposite edges are neighbours.
        steps: (batch, height, width), what :meth:`Moving.steps` of the same latents is; None looks for it.
    """
    cells, came, left = _changes(older, newest, sprites)
    # Only what shows something new can go on.
    moving = came.flatten(1).abs().amax(dim=1) > 0
    changed = cells
    cells, came = cells[moving], came[moving]
    if steps is None:
        new, old = _drawn(came, cells, newest.shape), _drawn(left, changed, newest.shape)
        number = _find(new, old, cells, sprites.shape[1], wraps)
        # Found up and to the left, it went down and to the right.
        step = torch.where(number < STEPS, STEPS - 1 - number, STEPS)
    else:
        step = steps[tuple(cells.T)].long()
    return Moving(cells, came, step, _things(cells, step, brightest(came), newest.shape, wraps))


def next_step(moving: Moving, newest: Tensor, following: Tensor, sprites: Tensor, wraps: bool) -> Tensor:
    """How what moves in ``newest`` came to where ``following``, the latent after it, shows it.

    Returns:
        (count,) int64: :func:`step_number`, ``STEPS`` where it is not to be found any more.
    """
    cells, came, _ = _changes(newest, following, sprites)
    now, then = (_drawn(*shown, newest.shape) for shown in ((moving.came, moving.cells), (came, cells)))
    number = _find(now, then, moving.cells, sprites.shape[1], wraps)
    there = sprites[following[tuple(moving.cells.T)]]
    shown = moving.came != 0
    differs = ((there - moving.came).square() * shown).sum(dim=(1, 2))
    stays = differs < (1 - _ALIKE) * moving.came.square().sum(dim=(1, 2))
    number = torch.where((number == STEPS) & stays, STEPS // 2, number)
    return number[moving.thing]


def carry(newest: Tensor, moving: Moving, number: Tensor, sprites: Tensor, rest: Tensor, origin: Tensor) -> Tensor:
    """The latent in which everything has made a step.

    Args:
        newest: (batch, height, width) int64, z_t.
        moving: what moves in it.
        number: (count,) int64 of :func:`step_number`; ``STEPS`` takes a thing away.
        sprites: (codes, cell, cell) float32.
        rest: (height, width) int64, the codes of the background.
        origin: (2,) int64, row and column of the grid, in pixels, where the screen begins: it ends there, too.

    Returns:
        (batch, height, width) int64: z_t, with the codes of what went on.
    """
    batch, height, width = newest.shape
    side = sprites.shape[1]
    rows, columns = height * side, width * side
    goes = number != STEPS // 2
    cells, came, number = moving.cells[goes], moving.came[goes], number[goes]
    if len(cells) == 0:
        return newest.clone()
    step = step_pixels(number)

    # Where the pixels of what moves go.
    which, row, column = ((came != 0) & (number < STEPS)[:, None, None]).nonzero().unbind(1)
    size = torch.tensor([rows, columns], device=cells.device)
    # On the screen, whose edge nothing crosses.
    at = torch.stack([cells[which, 1] * side + row, cells[which, 2] * side + column], dim=1)
    to = (at - origin) % size + step[which]
    inside = ((to >= 0) & (to < size)).all(dim=1)
    which, value = which[inside], came[which, row, column][inside]
    row_to, column_to = ((to[inside] + origin) % size).unbind(1)
    target = (cells[which, 0] * rows + row_to) * columns + column_to
    drawn = came.new_zeros(batch * rows * columns).index_add(0, target, value)

    # The cells that something leaves or enters, and the codes that show best what is in them then.
    leaves = torch.zeros_like(newest)
    leaves[tuple(cells.T)] = 1 + torch.arange(len(cells), device=cells.device)
    touched = leaves > 0
    touched[cells[which, 0], row_to // side, column_to // side] = True
    shown = touched.nonzero()
    where = tuple(shown.T)
    kept = sprites[newest[where]] - F.pad(came, (0, 0, 0, 0, 1, 0))[leaves[where]]
    entered = _squares(drawn.view(batch, rows, columns), shown[:, 0], shown[:, 1:] * side, side, True)
    picture = torch.where(entered != 0, entered, kept).flatten(1)
    something = picture.abs().amax(dim=1) > _VISIBLE
    codes = rest[where[1:]]
    codes[something] = _nearest(picture[something], sprites.flatten(1))
    result = newest.clone()
    result[where] = codes
    return result


def going_on(moving: Moving) -> Tensor:
    """The steps (count,) that all cells make if everything goes on; what has come stays."""
    return torch.where(moving.step < STEPS, moving.step, STEPS // 2)


def _changes(before: Tensor, after: Tensor, sprites: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells (count, 3) that change, the pixels that are new in them, and those that are gone."""
    cells = ((before != after) & (before < len(sprites))).nonzero()
    was = sprites[before[tuple(cells.T)]]
    now = sprites[after[tuple(cells.T)]]
    changed = (was - now).abs() > _VISIBLE
    came = torch.where(changed & (now.abs() > _VISIBLE), now, 0.0)
    left = torch.where(changed & (was.abs() > _VISIBLE), was, 0.0)
    return cells, came, left


def _find(frames: Tensor, others: Tensor, cells: Tensor, side: int, wraps: bool) -> Tensor:
    """Where else the blocks around some cells of ``frames`` are: (count,) numbers of the steps there, or ``STEPS``."""
    if len(cells) == 0:
        return cells.new_zeros(0)
    corner = cells[:, 1:] * side - _MARGIN
    block = side + 2 * _MARGIN
    blocks = _squares(frames, cells[:, 0], corner, block, wraps)
    area = _squares(others, cells[:, 0], corner - REACH, block + 2 * REACH, wraps)
    product = F.conv2d(area[None], blocks[:, None], groups=len(cells))[0]
    energy = block**2 * F.avg_pool2d(area.square()[None], block, stride=1)[0]
    alike = 2 * product / (energy + blocks.square().sum(dim=(1, 2), keepdim=True)).clamp(min=1e-6)
    line = torch.arange(-REACH, REACH + 1, device=cells.device).abs()
    alike = alike - _SHORTER * (line[:, None] + line) / (2 * REACH)
    best, number = alike.flatten(1).max(dim=1)
    return torch.where(best > _ALIKE, number, STEPS)


def brightest(came: Tensor) -> Tensor:
    """How much, and in which direction, the pixel of (count, cell, cell) differs that differs most: (count,)."""
    pixels = came.flatten(1)
    return pixels.gather(1, pixels.abs().argmax(dim=1, keepdim=True))[:, 0]


def _things(cells: Tensor, step: Tensor, brightness: Tensor, shape: torch.Size, wraps: bool) -> Tensor:
    """For each cell (count, 3) the first of those that show the same thing.

    They came by the same step, are as bright, and lie at most two cells from each other or from others that do.
    """
    height, width = shape[1:]
    thing = torch.arange(len(cells), device=cells.device)
    if len(cells) == 0:
        return thing
    margin = 0 if wraps else 2
    first = torch.full(shape, len(cells), device=cells.device)
    first = F.pad(first, (margin,) * 4, value=len(cells))
    where = cells[:, 0], cells[:, 1] + margin, cells[:, 2] + margin
    first[where] = thing
    around = places_around_wrapped if wraps else places_around
    places = around(cells, height + 2 * margin, width + 2 * margin, 2)
    near = first.flatten()[places]
    # Of no cell the step is that of none.
    steps, shades = F.pad(step, (0, 1), value=-1), F.pad(brightness, (0, 1))
    alike = (steps[near] == step[:, None]) & ((shades[near] - brightness[:, None]).abs() < _BRIGHTER)
    for _ in range(2):
        first[where] = thing
        thing = torch.where(alike, first.flatten()[places], len(cells)).amin(dim=1)
        for _ in range(3):
            thing = thing[thing]
    return thing


def shown_around(latent: Tensor, sprites: Tensor, batch: Tensor, corner: Tensor, side: int, wraps: bool) -> Tensor:
    """Squares of what a latent shows, without drawing all of it.

    Args:
        latent: (batch, height, width) int64; codes beyond the last sprite show nothing.
        sprites: (codes, cell, cell) float32.
        batch: (count,) int64, which latents.
        corner: (count, 2) int64, rows and columns of the upper left corners in pixels.
        side: of the squares in pixels.
        wraps: whether there is the other edge beyond an edge, or nothing.

    Returns:
        (count, side, side) float32.
    """
    cell = sprites.shape[1]
    sprites = F.pad(sprites, (0, 0, 0, 0, 0, 1))
    offsets = torch.arange(side, device=latent.device)
    row, column = corner[:, :1] + offsets, corner[:, 1:] + offsets
    height, width = latent.shape[1] * cell, latent.shape[2] * cell
    rows, columns = (row % height)[:, :, None], (column % width)[:, None, :]
    codes = latent[batch[:, None, None], rows // cell, columns // cell]
    seen = sprites[codes, rows % cell, columns % cell]
    if wraps:
        return seen
    beyond = ((row < 0) | (row >= height))[:, :, None] | ((column < 0) | (column >= width))[:, None, :]
    return seen.masked_fill(beyond, 0.0)


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
