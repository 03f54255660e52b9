"""Where things go: elsewhere they stay, and what goes without a reward may be only hidden.

In Pong a ball is gone in two cases: for one step, before a wall that is as bright as it is or at a paddle, after which
it is back; and over the edge of the screen, which brings a point. Both are few of many steps, and dynamics that know
neither lose balls that nobody pays for: a dream without a ball stays without one. Infants know that what is hidden is
still there (Piaget 1954, "The construction of reality in the child", object permanence); here it is known of one
latent, in which a thing that was there one step ago (:func:`dreamgym.models.motion.find_hidden`) is given a step of its
own, and can be gone only where in real experience things went: without a reward, with one, or again after they had been
hidden.
"""

from enum import IntEnum

import torch
from torch import Tensor

from dreamgym.models.motion import Moving
from dreamgym.models.things import Things


class Way(IntEnum):
    """In which a thing is gone."""

    UNPAID = 0
    PAID = 1
    """In a step with a reward, or the one after it."""
    HIDDEN = 2
    """After it was hidden."""


WAYS = len(Way)


def way(moving: Moving, things: Things, paid: Tensor) -> Tensor:
    """In which way each thing would be gone, (number + filling,) int64; ``paid`` (batch,) bool."""
    unhidden = paid[moving.cells[things.cell, 0]].long() * Way.PAID
    return torch.where(moving.hidden[things.cell], int(Way.HIDDEN), unhidden)


def may_go(moving: Moving, things: Things, paid: Tensor, places: Tensor, cell: int) -> Tensor:
    """Which things may be gone in the next latent.

    Args:
        moving: whose things.
        things: of :func:`dreamgym.models.things.find_things`.
        paid: (batch,) bool, whether there is a reward in this step or was in the one before.
        places: (height, width, WAYS) bool, where things went in real experience.
        cell: side of a cell in pixels.

    Returns:
        (number + filling,) bool.
    """
    row, column = (things.centre // cell).unbind(1)
    return places[row, column, way(moving, things, paid)]


def went(moving: Moving, things: Things, paid: Tensor, gone: Tensor, places: Tensor, cell: int) -> None:
    """Note in ``places`` (height, width, WAYS) where things are ``gone`` (cells,) bool in real experience."""
    which = gone[things.cell]
    which[things.number :] = False
    row, column = (things.centre // cell).unbind(1)
    places[row[which], column[which], way(moving, things, paid)[which]] = True
