"""What latents show in front of the background, object by object: a few numbers instead of all codes.

A policy that is shown places as numbers need not learn for every cell anew what an object there means. Which objects
there are is not taken from the game. What differs from the background and hangs together, each pixel about as bright as
the next, is a part; looks of parts that become each other are a kind; and of each kind as many are followed as are
mostly seen at once. What never moves is left out.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from dreamgym.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dreamgym.models.codecs import VQVAE

Array = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MOST_OBJECTS = 8
MOST_LOOKS = 256
LATENTS = 4
"""Newest latents that are looked at: three steps of every object."""
FEATURES = 5 + 2 * (LATENTS - 1)

_MOST_PARTS = 32
"""Of a latent that are looked at, those that stand out most."""

_SHADE = 0.25
"""Of white: pixels that differ by as much are of different parts, and parts whose mean difference from the background
is nearest to another multiple of this look different."""

_DIFFERS = 0.125
"""Of white: least difference from the background of a pixel that belongs to a part."""

_SHRED = 0.03
"""Of the mass of a latent's most massive part: what has less is none. Where many pictures share a code, its own is the
mean of them, and has shreds."""

_REACH = 40.0
"""Most that a part and what is taken for it one latent before may differ, in pixels."""

_PIXELS_A_SHADE = 32.0
"""How far away a part of the next shade looks."""

_BECOMES = 0.05
"""Least share of a look's sightings that are followed by another look of the same kind."""

_MOVES = 0.05
"""Least share of a kind's sightings in which it moves."""

_STEP = 0.5
"""Least pixels by which a part that moved is elsewhere."""

_STILL = 2.0
"""Pixels by which an object at least differs from its mean place (standard deviation) if it moves at all: a score's
figures are of different sizes."""

_OFTEN = 0.001
"""Least sightings a latent of a kind that is followed."""

_FARTHEST = 5.0
"""Standard deviations from its mean place within which an object is looked for where its kind has several."""

_CLOSE = 4
"""Most pixels, height and width together, by which a look that was never seen may differ from one that was."""

_FAR = 1e6

_FITS = 20
"""Times that places are given to objects and objects to places."""

_TOGETHER = 1_024
"""Latents that are looked at in one piece, for the memory it takes."""


class Kinds(NamedTuple):
    """Which objects of a game are followed."""

    looks: Index
    """(256, 4): shade, height, width and kind of what was seen; kind -1: no look."""
    slots: Array
    """(8, 9): of each object that is followed its kind (-1: none); its mean row, column, height and width, and by how
    much it differs from these (standard deviations, at least 1), pixels."""


def no_kinds() -> Kinds:
    """None, as before the first fit."""
    slots = np.ones((MOST_OBJECTS, 9), dtype=np.float32)
    slots[:, 0] = -1
    return Kinds(np.full((MOST_LOOKS, 4), -1), slots)


class Parts(NamedTuple):
    """The parts of n latents, those that stand out most first."""

    place: Array
    """(n, parts, 2): row and column of the centre, pixels."""
    look: Index
    """(n, parts, 3): shade, height and width in pixels."""
    mass: Array
    """(n, parts): sum over its pixels of their difference from the background, without its sign."""
    present: Mask
    """(n, parts)."""

    def box(self) -> Array:
        """(n, parts, 4): row and column of the centre, height and width, pixels."""
        return np.concatenate([self.place, self.look[..., 1:].astype(np.float32)], axis=-1)

    def rows(self, chosen: Index) -> Parts:
        """Those of some of the latents."""
        return Parts(self.place[chosen], self.look[chosen], self.mass[chosen], self.present[chosen])


class ObjectFinder:
    """Finds the objects of latents by what their codes look like.

    Args:
        codec: knows what every code looks like, the background and the kinds of objects (``VQVAEConfig.objects``).

    Raises:
        ConfigError: the codec knows no objects.
    """

    def __init__(self, codec: VQVAE) -> None:
        """Take the codec."""
        if not getattr(getattr(codec, "config", None), "objects", False):
            raise ConfigError(
                "observation 'objects' needs a codec that knows them: expected codec.objects=True, as laptop has "
                "it, got one without. Show 'codes' or fit one that does."
            )
        self._codec = codec

    def find(self, latents: Tensor) -> Array:
        """The objects of the newest of each stack of latents, and how they came there.

        Args:
            latents: (batch, stack, height, width) int64, newest last.

        Returns:
            (batch, 8, 11) float32, each object always in the same row, zeros where it is not to be seen: 1; row and
            column of its centre, height and width, each less its mean, in standard deviations of at least 1 pixel; its
            last step down and to the right, the one before that and the one before, in 4 pixels, 0 where it was not
            seen. So what is always the same is 0.
        """
        newest = latents[:, -LATENTS:]
        batch, count = newest.shape[:2]
        kinds = Kinds(self._codec.looks.cpu().numpy(), self._codec.slots.cpu().numpy())
        parts = find_parts(self._codec, newest.flatten(0, 1).cpu().numpy())
        part, seen = _assign(parts, kinds)
        box = np.take_along_axis(parts.box(), part[..., None], axis=1).reshape(batch, count, -1, 4)
        place, seen = box[..., :2], seen.reshape(batch, count, -1)
        described = np.zeros((batch, MOST_OBJECTS, FEATURES), dtype=np.float32)
        described[..., 0] = 1
        described[..., 1:5] = (box[:, -1] - kinds.slots[:, 1:5]) / kinds.slots[:, 5:]
        for age in range(1, count):
            both = seen[:, -age] & seen[:, -age - 1]
            step = np.where(both[..., None], place[:, -age] - place[:, -age - 1], 0)
            described[..., 3 + 2 * age : 5 + 2 * age] = step.clip(-20, 20) / 4
        described[~seen[:, -1]] = 0
        return described


def find_parts(codec: VQVAE, codes: npt.NDArray[np.integer]) -> Parts:
    """What latents (n, height, width) show in front of the background: pixels that touch and are about as bright."""
    # All screens of a piece are laid out in one array.
    pieces = np.array_split(codes, max(1, -(-len(codes) // _TOGETHER)))
    return Parts(*(np.concatenate(part) for part in zip(*(_look(codec, piece) for piece in pieces), strict=True)))


def _look(codec: VQVAE, codes: npt.NDArray[np.integer]) -> Parts:
    height, width = codec.config.frame
    cell, sprites, rest = codec.config.cell, codec.sprites.cpu().numpy(), codec.rest.cpu().numpy()
    where = np.nonzero(codes != rest)
    in_front = sprites[codes[where]] - sprites[rest[where[1:]]]
    inside = np.nonzero(np.abs(in_front) >= _DIFFERS)
    at, down, right = inside
    place = where[0][at], where[1][at] * cell + down, where[2][at] * cell + right
    belongs = _connected(place, in_front[inside], (len(codes), height, width))
    return _sort(_measure(place, belongs, in_front[inside]), len(codes))


def _connected(place: tuple[Index, Index, Index], in_front: Array, size: tuple[int, int, int]) -> Index:
    """For pixels at places (screen, row, column) the number of the part they belong to, from what they show there."""
    screen, row, column = place
    # A margin all round keeps one screen's edge from touching the next one's.
    rows, columns = size[1] + 2, size[2] + 2
    flat = (screen * rows + row + 1) * columns + column + 1
    pixel = np.full(size[0] * rows * columns, -1, dtype=np.int32)
    pixel[flat] = np.arange(len(flat))
    pairs = [(np.arange(len(flat)), pixel[flat + away]) for away in (1, columns - 1, columns, columns + 1)]
    one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    touching = (other >= 0) & (np.abs(in_front[one] - in_front[other]) < _SHADE)
    graph = csr_array((touching[touching], (one[touching], other[touching])), shape=(len(flat), len(flat)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _measure(place: tuple[Index, Index, Index], belongs: Index, in_front: Array) -> npt.NDArray[Any]:
    """Parts (parts, 7): screen, the centre's row and column, shade, height, width, mass."""
    count = int(belongs.max(initial=-1)) + 1
    area = np.bincount(belongs, minlength=count)
    means = [np.bincount(belongs, axis, minlength=count) / area for axis in (*place, in_front / _SHADE)]
    sides = []
    for axis in place[1:]:
        first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
        np.minimum.at(first, belongs, axis)
        np.maximum.at(last, belongs, axis)
        sides.append(last - first + 1)
    return np.stack([*means, *sides, np.bincount(belongs, np.abs(in_front), minlength=count)], axis=1)


def _sort(parts: npt.NDArray[Any], number: int) -> Parts:
    """Parts (parts, 7) of so many screens, sorted into these, without shreds."""
    most = np.zeros(number)
    shown_on = np.rint(parts[:, 0]).astype(np.int64)
    np.maximum.at(most, shown_on, parts[:, 6])
    parts = parts[parts[:, 6] >= _SHRED * most[shown_on]]
    parts = parts[np.lexsort((-parts[:, 6], parts[:, 0]))]
    screen = np.rint(parts[:, 0]).astype(np.int64)
    rank = np.arange(len(screen)) - np.searchsorted(screen, screen)
    kept = rank < _MOST_PARTS
    where = screen[kept], rank[kept]
    filled = np.zeros((number, _MOST_PARTS, 6), dtype=np.float32)
    filled[where] = parts[kept, 1:]
    present = np.zeros((number, _MOST_PARTS), dtype=np.bool_)
    present[where] = True
    return Parts(filled[..., :2], np.rint(filled[..., 2:5]).astype(np.int64), filled[..., 5], present)


def _assign(parts: Parts, kinds: Kinds) -> tuple[Index, Mask]:
    """Which part each object that is followed is, (n, objects), and whether it is any.

    Where a kind has one object it is the most massive part; of several each takes the part that is most likely it, the
    most likely of all first, and none that is too far away.
    """
    kind = kinds.slots[:, 0].astype(np.int64)
    fits = _kind_of(parts, kinds.looks)[:, None] == np.where(kind < 0, -2, kind)[:, None]
    place, slots = parts.place[:, None], kinds.slots[:, None]
    alone = ((kind[:, None] == kind).sum(axis=1) == 1)[:, None]
    fits &= alone | (_away(place, slots) <= _FARTHEST**2)
    cost = np.where(fits, np.where(alone, -parts.mass[:, None], _unlikely(place, slots)), _FAR)
    number, slots, most = cost.shape
    chosen, seen = np.zeros((number, slots), dtype=np.int64), np.zeros((number, slots), dtype=np.bool_)
    every = np.arange(number)
    for _ in range(slots):
        best = cost.reshape(number, -1).argmin(axis=1)
        slot, part = best // most, best % most
        free = cost[every, slot, part] < _FAR
        chosen[every[free], slot[free]] = part[free]
        seen[every[free], slot[free]] = True
        cost[every[free], slot[free]] = _FAR
        cost[every[free], :, part[free]] = _FAR
    return chosen, seen


def _away(place: npt.NDArray[Any], slots: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """How far places (..., 2) are from those of slots (..., 9), in standard deviations, squared."""
    return (((place - slots[..., 1:3]) / slots[..., 5:7]) ** 2).sum(axis=-1)


def _unlikely(place: npt.NDArray[Any], slots: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Minus twice the log of a normal density at places (..., 2), up to a constant; of slots (..., 9)."""
    return _away(place, slots) + 2 * np.log(slots[..., 5:7]).sum(axis=-1)


def _kind_of(parts: Parts, looks: Index) -> Index:
    """The kind of every part, (n, parts): that of the look most like it, -1 where there is none."""
    kinds = np.full(parts.present.shape, -1)
    known = looks[looks[:, 3] >= 0]
    if not len(known):
        return kinds
    look = parts.look[parts.present]
    unlike = np.abs(look[:, None, 1:] - known[:, 1:3]).sum(axis=-1)
    unlike = np.where(look[:, None, 0] == known[:, 0], unlike, _FAR)
    nearest = unlike.argmin(axis=1)
    kinds[parts.present] = np.where(unlike[np.arange(len(look)), nearest] <= _CLOSE, known[nearest, 3], -1)
    return kinds


def learn_kinds(parts: Parts, follows: Mask, seed: int = 0) -> Kinds:
    """Which kinds of objects there are in experience.

    Args:
        parts: of latents in the order in which they came.
        follows: (n,) bool: whether a latent is the next one of the same episode.
        seed: of where the objects of a kind are looked for first.
    """
    seen, number = np.unique(parts.look[parts.present], axis=0, return_inverse=True)
    look = np.full(parts.present.shape, -1)
    look[parts.present] = number.reshape(-1)
    now, then, moved = _follow(parts, look, np.flatnonzero(follows))
    count = np.bincount(number.reshape(-1), minlength=len(seen))
    kind = _merge(now, then, count)
    kinds = int(kind.max(initial=-1)) + 1
    often, found = np.bincount(kind, count, minlength=kinds), np.bincount(kind[now], minlength=kinds)
    moving = np.bincount(kind[now], moved, minlength=kinds) / np.maximum(1, found)
    followed = np.flatnonzero((moving >= _MOVES) & (often >= _OFTEN * len(parts.present)))
    followed = followed[np.argsort(-often[followed], kind="stable")]
    return _choose(parts, look, seen, count, kind, followed, seed)


def _follow(parts: Parts, look: Index, following: Index) -> tuple[Index, Index, Mask]:
    """Of every part in latents that follow one: its look, its look in the latent before, and whether it moved."""
    seen: list[tuple[Index, Index, Mask]] = []
    for rows in np.array_split(following, max(1, -(-len(following) // _TOGETHER))):
        newer, older = parts.rows(rows), parts.rows(rows - 1)
        came_from, found = _match(newer, older)
        step = newer.place - np.take_along_axis(older.place, came_from[..., None], axis=1)
        before = np.take_along_axis(look[rows - 1], came_from, axis=1)
        seen.append((look[rows][found], before[found], np.abs(step).max(axis=-1)[found] >= _STEP))
    now, then, moved = (np.concatenate(part) for part in zip(*seen, strict=True))
    return now, then, moved


def _merge(now: Index, then: Index, count: Index) -> Index:
    """The kind of every look: looks that become each other often enough are one."""
    pairs = coo_array((np.ones(len(now)), (then, now)), shape=(len(count), len(count))).tocsr()
    pairs = (pairs + pairs.T).tocoo()
    rarer = np.minimum(count[pairs.coords[0]], count[pairs.coords[1]])
    kept = pairs.data >= 2 * _BECOMES * rarer
    graph = csr_array((kept[kept], (pairs.coords[0][kept], pairs.coords[1][kept])), shape=pairs.shape)
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _choose(parts: Parts, look: Index, seen: Index, count: Index, kind: Index, followed: Index, seed: int) -> Kinds:
    """Rows for the kinds that are followed, most often seen first: as many objects of each as are mostly seen."""
    looks, slots = no_kinds()
    filled, listed = 0, 0
    of_kind = np.where(look >= 0, kind[look], -1)
    for name, original in enumerate(followed):
        own = of_kind == original
        at_once = own.sum(axis=1)
        objects = max(1, int(np.median(at_once[at_once > 0])))
        told = _tell_apart(parts.box()[own].astype(np.float64), objects, seed)
        told = told[told[:, 4:6].max(axis=1) >= _STILL][: MOST_OBJECTS - filled]
        slots[filled : filled + len(told), 0] = name
        slots[filled : filled + len(told), 1:] = told
        filled += len(told)
        its = np.flatnonzero(kind == original)
        its = its[np.argsort(-count[its], kind="stable")][: MOST_LOOKS - listed]
        looks[listed : listed + len(its), :3], looks[listed : listed + len(its), 3] = seen[its], name
        listed += len(its)
    return Kinds(looks, slots)


def _tell_apart(boxes: npt.NDArray[np.float64], objects: int, seed: int) -> npt.NDArray[np.float64]:
    """Means and deviations (objects, 8) of boxes (n, 4) of so many objects that are seen at once.

    What moves up and down alone is told from what does not move by how far it is from its column.
    """
    with warnings.catch_warnings():
        # Where there are fewer places than objects some have none.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        _, nearest = kmeans2(boxes[:, :2], objects, minit="++", rng=seed)
    found = np.ones((objects, 9))
    for _ in range(_FITS):
        for which in range(objects):
            own = boxes[nearest == which]
            if len(own):
                found[which, 1:] = [*own.mean(axis=0), *np.maximum(own.std(axis=0), 1)]
        nearest = _unlikely(boxes[:, None, :2], found).argmin(axis=1)
    return found[np.lexsort(found[:, 1:3].T), 1:]


def _match(newer: Parts, older: Parts) -> tuple[Index, Mask]:
    """Which part of the latent before each part most likely was, (n, parts), and whether it was any."""

    def apart(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.abs(a[:, :, None] - b[:, None])

    looks = apart(newer.look, older.look)
    unlike = apart(newer.place, older.place).max(axis=-1) + looks @ np.array([_PIXELS_A_SHADE, 1, 1])
    unlike = np.where(older.present[:, None], unlike, _FAR)
    nearest = unlike.argmin(axis=-1)
    near = np.take_along_axis(unlike, nearest[..., None], axis=-1)[..., 0] < _REACH
    return nearest, near & newer.present
