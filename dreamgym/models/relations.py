"""What the other things on the screen say of a thing.

In Pong the opponent's paddle goes where the ball is, half a screen away: a network that sees the surroundings of a
thing lets it go on as it went. Here every pair of things is seen together, from where to where in pixels, and what is
found is summed over the others: the relation network of Santoro et al. 2017 ("A simple neural network module for
relational reasoning", Eq. 1) with one sum for each thing, as in the interaction network of Battaglia et al. 2016
("Interaction networks for learning about objects, relations and physics", Eq. 4-6).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.motion import REACH, STEPS, Moving, brightest, step_pixels
from dreamgym.models.patches import BLOCK
from dreamgym.models.things import Things

_SCALES = (2, 8, 32)
"""Pixels in which distances are told: what decides is now whether one is above the other, now how far away it is."""

_MOST = 16
"""Things of a screen that others are told of: those with the most pixels."""

_ALONE = 7
"""Numbers that are told of one thing, see :func:`describe`."""


class Relations(nn.Module):
    """A sum over the other things of a network that sees both."""

    def __init__(self, size: tuple[int, int], outputs: int, hidden: int = 64) -> None:
        """Build the network for frames of ``size`` pixels."""
        super().__init__()
        self.size = size
        self.pair = nn.Linear(2 * _ALONE + 2 * (1 + len(_SCALES)), hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.told = nn.Linear(hidden, outputs, bias=False)

    def forward(self, moving: Moving, things: Things, origin: Tensor) -> Tensor:
        """What each thing is told of the others.

        Args:
            moving: of :func:`dreamgym.models.motion.find_moving`.
            things: of :func:`dreamgym.models.things.find_things`.
            origin: (2,) int64, row and column of the grid, in pixels, where the screen begins.

        Returns:
            (number + filling, outputs); zeros for a thing that is alone.
        """
        one, other = pairs(moving.cells[things.cell[: things.number], 0], things.mass[: things.number])
        filling = -len(one) % BLOCK
        one, other = F.pad(one, (0, filling)), F.pad(other, (0, filling))
        size = torch.tensor(self.size, device=origin.device)
        place = (things.centre - origin) % size
        alone = describe(moving, things, place / size)
        away = (place[other] - place[one]).float()
        far = [away / size, *(torch.tanh(away / scale) for scale in _SCALES)]
        hidden = F.relu(self.pair(torch.cat([alone[one], alone[other], *far], dim=1)))
        hidden = F.relu(self.mix(hidden)).float()
        sums = hidden.new_zeros(len(things.cell), hidden.shape[1])
        count = len(one) - filling
        return self.told(sums.index_add(0, one[:count], hidden[:count]))


def describe(moving: Moving, things: Things, place: Tensor) -> Tensor:
    """Place, last step and whether it is known, brightness and size of things: (number + filling, 7) float32."""
    step = moving.step[things.cell]
    known = (step < STEPS).float()
    pixels = step_pixels(step) / REACH * known[:, None]
    brightness = brightest(moving.shown[things.cell])
    return torch.cat([place, pixels, torch.stack([known, brightness, torch.log1p(things.mass)], dim=1)], dim=1)


def pairs(batch: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Which things (count,) of the same screen are told of which others: two tensors of indices.

    Args:
        batch: (count,) int64, ascending: the screen of each thing.
        mass: (count,) float32: of many things on one screen the heaviest are told of.
    """
    # Screen by screen, the heaviest first.
    order = mass.argsort(descending=True, stable=True)
    order = order[batch[order].argsort(stable=True)]
    begin = torch.searchsorted(batch, batch)
    told = (torch.searchsorted(batch, batch, right=True) - begin).clamp(max=_MOST)
    one = torch.arange(len(batch), device=batch.device).repeat_interleave(told)
    rank = torch.arange(len(one), device=batch.device) - (told.cumsum(0) - told)[one]
    other = order[begin[one] + rank]
    apart = one != other
    return one[apart], other[apart]
