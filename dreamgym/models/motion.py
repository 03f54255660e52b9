"""What a latent would be if all that moves went on: block matching, as video codecs do it.

A code stands for a small picture, and a thing that flies at one speed shows itself in another code at every step: what
a network on the grid of cells learns of one place inside a cell and one speed tells it nothing of the others. On the
grid of pixels all of them are the same. What differs from the background is put together to things, each is looked for
in the latent before (exhaustive block matching by the sum of squared differences, Jain and Jain 1981), all of its cells
at once, and drawn again as far behind. Nothing is learned here; the dynamics are shown the outcome as one more latent,
and learn when it is right. It is wrong where something bounces or changes its shape.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.patches import BLOCK, places_around, places_around_wrapped

REACH = 12
"""Pixels that a thing may move in a step, up and down and to both sides."""

_MOST = 64
"""Cells of a latent that may differ from the background; of more only those that have just changed are things."""

_PART = 0.5
"""Of the brightness of a thing's brightest pixel in a cell: what is darker there is something else.

So is, in another latent, what is brighter by as much."""

_BRIGHT = 8.0
"""How much more a pixel counts that differs from the background as much as any around it, than one that does not."""

_NOWHERE = 1e4
"""By which a code is further from all looks where it is not drawn."""

_VISIBLE = 0.12
"""Of white: pixels that differ by less look alike."""

_ALIKE = 0.5
"""Least likeness of a thing and what is taken for it elsewhere: twice their product over the sum of their squares."""

STEPS = (2 * REACH + 1) ** 2
"""Steps that are told apart, the one in the middle none at all; one more stands for what is not to be found."""

_SHORTER = 1e-3
"""By which the longest step is less alike: along a bar many are alike, and the shortest of them is taken."""

_BRIGHTER = 0.15
"""Of white: things that differ by more in their brightest pixels are others."""


class Moving(NamedTuple):
    """What a latent shows that the background does not, cell by cell: what moves, and what could."""

    cells: Tensor
    """(count, 3) int64: batch, row, column."""
    shown: Tensor
    """(count, cell, cell) float32: the thing's pixels there, 0 for others."""
    step: Tensor
    """(count,) int64: :func:`step_number` of how it came there from the latent before; ``STEPS`` if it was nowhere."""
    thing: Tensor
    """(count,) int64: the first of the cells that show the same thing."""
    hidden: Tensor
    """(count,) bool: whether it was there one latent ago and is not to be seen now (:func:`find_hidden`)."""

    def steps(self, latent: Tensor) -> Tensor:
        """The steps as a map like ``latent``, (batch, height, width) int64; ``STEPS`` where there is no thing."""
        return torch.full_like(latent, STEPS).index_put(tuple(self.cells.T), self.step)


def step_number(step: Tensor) -> Tensor:
    """Number of a step of (..., 2) pixels, down and to the right, each from -``REACH`` to ``REACH``."""
    return (step[..., 0] + REACH) * (2 * REACH + 1) + step[..., 1] + REACH


def step_pixels(number: Tensor) -> Tensor:
    """The reverse of :func:`step_number`: (..., 2) int64."""
    side = 2 * REACH + 1
    return torch.stack([number // side, number % side], dim=-1) - REACH


def find_moving(
    older: Tensor, newest: Tensor, pictures: Tensor, rest: Tensor, wraps: bool, steps: Tensor | None = None
) -> Moving:
    """The things of a latent, and where they were before.

    Args:
        older: (batch, height, width) int64, z_{t-1}; codes beyond the last picture were not seen, and show nothing.
        newest: (batch, height, width) int64, z_t.
        pictures: (codes, cell, cell) float32 in [0, 1], what a code looks like.
        rest: (height, width) int64, the codes of the background.
        wraps: whether cells at opposite edges are neighbours.
        steps: (batch, height, width), what :meth:`Moving.steps` of the same latents is; None looks for it.
    """
    found = _in_sight(newest, older, pictures, rest, wraps)
    if steps is not None:
        return found._replace(step=steps[tuple(found.cells.T)].long())
    back = next_step(found, newest, older, pictures, rest, wraps)
    return found._replace(step=_backwards(back))


def find_hidden(
    oldest: Tensor, older: Tensor, newest: Tensor, moving: Moving, pictures: Tensor, rest: Tensor, wraps: bool
) -> Moving:
    """The things that z_{t-1} shows and z_t does not: behind something else, or before what looks alike.

    Args:
        oldest: (batch, height, width) int64, z_{t-2}.
        older: (batch, height, width) int64, z_{t-1}.
        newest: (batch, height, width) int64, z_t.
        moving: the things of z_t; where one as bright as what is gone has come, it is that.
        pictures: (codes, cell, cell) float32 in [0, 1], what a code looks like.
        rest: (height, width) int64, the codes of the background.
        wraps: whether cells at opposite edges are neighbours.

    Returns:
        Their cells in z_{t-1}; ``step`` is what two steps like their last one come to.
    """
    there = _in_sight(older, newest, pictures, rest, wraps)
    kept = next_step(there, older, newest, pictures, rest, wraps) == STEPS
    came = (moving.step == STEPS).nonzero()[:, 0]
    came = came[moving.thing[came] == came]
    same = there.cells[:, :1] == moving.cells[came, 0]
    alike = (brightest(there.shown)[there.thing][:, None] - brightest(moving.shown)[came]).abs() < _BRIGHTER
    kept &= ~(same & alike).any(dim=1)
    there = _some(there, kept)
    back = next_step(there, older, oldest, pictures, rest, wraps)
    twice = step_number((2 * step_pixels(_backwards(back))).clamp(-REACH, REACH))
    return there._replace(step=torch.where(back < STEPS, twice, STEPS), hidden=torch.ones_like(there.hidden))


def hidden_at(latent: Tensor, steps: Tensor, pictures: Tensor, rest: Tensor, wraps: bool) -> Moving:
    """What :func:`find_hidden` found, of z_{t-1} and ``steps`` (batch, height, width): -1 where nothing is hidden."""
    cells = (steps >= 0).nonzero()
    shown = _belonging(shown_in(latent, pictures, rest, cells))
    thing = _things(cells, brightest(shown), latent.shape, wraps)
    every = torch.ones_like(thing, dtype=torch.bool)
    return Moving(cells, shown, steps[tuple(cells.T)].long(), thing, every)


def join(moving: Moving, hidden: Moving) -> tuple[Moving, Tensor]:
    """Both, latent by latent, and the order (count,) in which they are taken from one after the other."""
    order = torch.cat([moving.cells[:, 0], hidden.cells[:, 0]]).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    thing = place[torch.cat([moving.thing, hidden.thing + len(moving.thing)])[order]]
    parts = [torch.cat(each)[order] for each in zip(moving, hidden, strict=True)]
    return Moving(parts[0], parts[1], parts[2], thing, parts[4]), order


def _in_sight(latent: Tensor, other: Tensor, pictures: Tensor, rest: Tensor, wraps: bool) -> Moving:
    """The things of a latent, without their steps; of a crowded one those that differ from the ``other``."""
    cells = ((latent != rest) & (latent < len(pictures))).nonzero()
    shown = _belonging(shown_in(latent, pictures, rest, cells))
    something = shown.flatten(1).any(dim=1)
    cells, shown = cells[something], shown[something]
    crowded = torch.bincount(cells[:, 0], minlength=len(latent)) > _MOST
    kept = ~crowded[cells[:, 0]] | (latent != other)[tuple(cells.T)]
    cells, shown = cells[kept], shown[kept]
    thing = _things(cells, brightest(shown), latent.shape, wraps)
    return Moving(cells, shown, torch.full_like(thing, STEPS), thing, torch.zeros_like(thing, dtype=torch.bool))


def _backwards(step: Tensor) -> Tensor:
    """The way back of some steps: up and to the left was down and to the right."""
    return torch.where(step < STEPS, STEPS - 1 - step, STEPS)


def _some(moving: Moving, kept: Tensor) -> Moving:
    """Of things those whose cells are all ``kept`` (count,) bool, or none of them is."""
    place = kept.cumsum(0) - 1
    thing = place[moving.thing[kept]]
    return Moving(moving.cells[kept], moving.shown[kept], moving.step[kept], thing, moving.hidden[kept])


def next_step(moving: Moving, newest: Tensor, following: Tensor, pictures: Tensor, rest: Tensor, wraps: bool) -> Tensor:
    """How the things of ``newest`` came to where ``following``, the latent after it, shows them.

    Returns:
        (count,) int64: :func:`step_number`, ``STEPS`` where it is not to be found any more.
    """
    cells, shown, thing = moving.cells, moving.shown, moving.thing
    number = torch.full_like(thing, STEPS // 2)
    where = tuple(cells.T)
    changed = torch.zeros_like(thing, dtype=torch.bool)
    changed[thing[newest[where] != following[where]]] = True
    # What shows itself in the same codes is where it was.
    looked = changed[thing].nonzero()[:, 0]
    if len(looked) == 0:
        return number
    cells, blocks, side = cells[looked], shown[looked], shown.shape[1]
    reach = -(-REACH // side)
    beyond = reach * side - REACH
    area = _shown_cells(following, pictures, rest, cells[:, 0], cells[:, 1:] - reach, 2 * reach + 1, wraps)
    area = area[:, beyond : area.shape[1] - beyond, beyond : area.shape[2] - beyond]
    # What is much brighter or darker is something else: a ball is not a part of the paddle that it has met.
    shade = brightest(blocks)[:, None, None]
    ratio = area / shade
    area = torch.where((area.abs() > _VISIBLE) & (ratio > _PART) & (ratio < 1 / _PART), area, 0.0)
    product = F.conv2d(area[None], blocks[:, None], groups=len(cells))[0]
    energy = _windows(_windows(area.square(), 1, side), 2, side)
    # Of all cells of a thing together: along a bar one alone could be anywhere.
    first, index = torch.unique(thing[looked], return_inverse=True)
    alone = energy + blocks.square().sum(dim=(1, 2))[:, None, None]
    empty = product.new_zeros(len(first), *product.shape[1:])
    alike = 2 * empty.index_add(0, index, product) / empty.index_add(0, index, alone).clamp(min=1e-6)
    line = torch.arange(-REACH, REACH + 1, device=cells.device).abs()
    alike = alike - _SHORTER * (line[:, None] + line) / (2 * REACH)
    best, found = alike.flatten(1).max(dim=1)
    number[looked] = torch.where(best > _ALIKE, found, STEPS)[index]
    return number


def carry(
    newest: Tensor,
    moving: Moving,
    number: Tensor,
    pictures: Tensor,
    rest: Tensor,
    origin: Tensor,
    places: Tensor | None = None,
) -> Tensor:
    """The latent in which everything has made a step.

    Args:
        newest: (batch, height, width) int64, z_t.
        moving: the things in it.
        number: (count,) int64 of :func:`step_number`; ``STEPS`` takes a thing away.
        pictures: (codes, cell, cell) float32 in [0, 1], what a code looks like.
        rest: (height, width) int64, the codes of the background.
        origin: (2,) int64, row and column of the grid, in pixels, where the screen begins: it ends there, too.
        places: (height, width, codes) bool, which codes are drawn where; None draws all everywhere.

    Returns:
        (batch, height, width) int64: z_t, with the codes of what went on.
    """
    batch, height, width = newest.shape
    side = pictures.shape[1]
    rows, columns = height * side, width * side
    goes = (number != STEPS // 2) | moving.hidden
    cells, came, number, hidden = moving.cells[goes], moving.shown[goes], number[goes], moving.hidden[goes]
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
    leaves, left = torch.zeros_like(newest), ~hidden
    leaves[tuple(cells[left].T)] = 1 + torch.arange(len(cells), device=cells.device)[left]
    touched = leaves > 0
    touched[cells[which, 0], row_to // side, column_to // side] = True
    shown = touched.nonzero()
    where = tuple(shown.T)
    kept = shown_in(newest, pictures, rest, shown) - F.pad(came, (0, 0, 0, 0, 1, 0))[leaves[where]]
    entered = _squares(drawn.view(batch, rows, columns), shown[:, 0], shown[:, 1:] * side, side)
    picture = torch.where(entered != 0, entered, kept)
    something = picture.abs().flatten(1).amax(dim=1) > _VISIBLE
    codes = rest[where[1:]]
    looks = picture[something] + pictures[codes[something]]
    # Of a code that shows all of a wall but not the ball before it the picture is nearly right, and the ball is gone.
    weight = 1 + _BRIGHT * (picture[something].abs() / picture[something].abs().amax(dim=(1, 2), keepdim=True)).square()
    row, column = shown[something, 1:].unbind(1)
    drawn_there = None if places is None else places[row, column]
    codes[something] = _nearest(looks.flatten(1), pictures.flatten(1), weight.flatten(1), drawn_there)
    result = newest.clone()
    result[where] = codes
    return result


def going_on(moving: Moving) -> Tensor:
    """The steps (count,) that all cells make if everything goes on; what has come stays."""
    return torch.where(moving.step < STEPS, moving.step, STEPS // 2)


def shown_in(latent: Tensor, pictures: Tensor, rest: Tensor, cells: Tensor) -> Tensor:
    """What some cells (count, 3) of a latent show that the background does not: (count, cell, cell) in [-1, 1]."""
    codes = latent[tuple(cells.T)]
    seen = F.pad(pictures, (0, 0, 0, 0, 0, 1))[codes] - pictures[rest[cells[:, 1], cells[:, 2]]]
    return torch.where((codes < len(pictures))[:, None, None], seen, 0.0)


def _belonging(shown: Tensor) -> Tensor:
    """Of what each cell (count, cell, cell) shows what belongs to its brightest thing; 0 elsewhere."""
    brightness = brightest(shown)[:, None, None]
    belongs = (shown.abs() > _VISIBLE) & (shown * brightness > _PART * brightness.square())
    return torch.where(belongs, shown, 0.0)


def brightest(came: Tensor) -> Tensor:
    """How much, and in which direction, the pixel of (count, cell, cell) differs that differs most: (count,)."""
    pixels = came.flatten(1)
    return pixels.gather(1, pixels.abs().argmax(dim=1, keepdim=True))[:, 0]


def _things(cells: Tensor, brightness: Tensor, shape: torch.Size, wraps: bool) -> Tensor:
    """For each cell (count, 3) the first of those that show the same thing.

    They are as bright, and are neighbours of it or of others that are.
    """
    height, width = shape[1:]
    thing = torch.arange(len(cells), device=cells.device)
    if len(cells) == 0:
        return thing
    margin = 0 if wraps else 1
    first = torch.full(shape, len(cells), device=cells.device)
    first = F.pad(first, (margin,) * 4, value=len(cells))
    where = cells[:, 0], cells[:, 1] + margin, cells[:, 2] + margin
    first[where] = thing
    around = places_around_wrapped if wraps else places_around
    places = around(cells, height + 2 * margin, width + 2 * margin, 1)
    near = first.flatten()[places]
    # Of no cell the brightness is that of none.
    shades = F.pad(brightness, (0, 1), value=torch.inf)
    alike = (shades[near] - brightness[:, None]).abs() < _BRIGHTER
    for _ in range(2):
        first[where] = thing
        thing = torch.where(alike, first.flatten()[places], len(cells)).amin(dim=1)
        for _ in range(3):
            thing = thing[thing]
    return thing


def shown_around(
    latent: Tensor, pictures: Tensor, rest: Tensor, batch: Tensor, corner: Tensor, side: int, wraps: bool
) -> Tensor:
    """Squares of what a latent shows that the background does not, without drawing all of it.

    Args:
        latent: (batch, height, width) int64; codes beyond the last picture show nothing.
        pictures: (codes, cell, cell) float32.
        rest: (height, width) int64.
        batch: (count,) int64, which latents.
        corner: (count, 2) int64, rows and columns of the upper left corners in pixels.
        side: of the squares in pixels.
        wraps: whether there is the other edge beyond an edge, or nothing.

    Returns:
        (count, side, side) float32.
    """
    cell = pictures.shape[1]
    first = corner.div(cell, rounding_mode="floor")
    area = _shown_cells(latent, pictures, rest, batch, first, (side + cell - 2) // cell + 1, wraps)
    rows, columns = ((corner - first * cell)[:, :, None] + torch.arange(side, device=latent.device)).unbind(1)
    return area[torch.arange(len(area), device=latent.device)[:, None, None], rows[:, :, None], columns[:, None]]


def _shown_cells(
    latent: Tensor, pictures: Tensor, rest: Tensor, batch: Tensor, first: Tensor, count: int, wraps: bool
) -> Tensor:
    """As :func:`shown_around`, squares of ``count`` cells to a side from the cells ``first`` (rows, 2) on."""
    (height, width), line = rest.shape, torch.arange(count, device=latent.device)
    row, column = first[:, :1] + line, first[:, 1:] + line
    rows, columns = (row % height)[:, :, None], (column % width)[:, None]
    codes, ground = latent[batch[:, None, None], rows, columns], rest[rows, columns]
    # Few cells show anything.
    shows = (codes != ground) & (codes < len(pictures))
    if not wraps:
        shows &= ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]
    which = shows.nonzero().unbind(1)
    area = pictures.new_zeros(*shows.shape, *pictures.shape[1:])
    area[which] = pictures[codes[which]] - pictures[ground[which]]
    return area.transpose(2, 3).flatten(3).flatten(1, 2)


def _nearest(looks: Tensor, pictures: Tensor, weight: Tensor, among: Tensor | None) -> Tensor:
    """Which picture (codes, pixels) is nearest to each look (count, pixels): (count,) int64.

    By the weights (count, pixels) of its pixels, and ``among`` those that are True in (count, codes); None: among all.
    """
    # Of the sum of weight * (look - picture)^2 what differs from picture to picture.
    given = torch.cat([weight, -2 * weight * looks], dim=1)
    # In products of few rows the last bits of one depend on how many there are.
    given = F.pad(given, (0, 0, 0, -len(given) % BLOCK))
    with torch.autocast(given.device.type, enabled=False):
        distance = (given @ torch.cat([pictures.square(), pictures], dim=1).T)[: len(looks)]
    if among is not None:
        distance = distance + _NOWHERE * ~among
    return distance.argmin(dim=1)


def _windows(values: Tensor, dim: int, side: int) -> Tensor:
    """Sums of every ``side`` values one after the other, along an axis."""
    length = values.shape[dim] - side + 1
    sums = values.narrow(dim, 0, length).clone()
    for first in range(1, side):
        sums += values.narrow(dim, first, length)
    return sums


def _squares(frames: Tensor, batch: Tensor, corner: Tensor, side: int) -> Tensor:
    """Squares of frames (count, side, side), by batch (count,) and upper left corner (count, 2); edges are joined."""
    offsets = torch.arange(side, device=frames.device)
    rows, columns = ((corner[:, axis, None] + offsets) % frames.shape[1 + axis] for axis in (0, 1))
    return frames[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
