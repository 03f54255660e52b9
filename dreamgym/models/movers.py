"""Of all the steps that a thing could make one is drawn, for all its cells together.

Cell by cell, a model that is not sure where a ball goes gives each of the cells where it could be a small chance, and
in a case that it has not seen hardly any: the ball is drawn in none of them, and is gone. Here the chances of the steps
of one thing, in pixels, sum to one, as those of the kernels of Finn et al. 2016 ("Unsupervised learning for physical
interaction through video prediction", Section 3.1): if it is not gone, which is one chance among the others, it goes
somewhere. A thing is what differs from the background, whether block matching (:mod:`dreamgym.models.motion`) finds it
in the latent before or not. The latent in which everything has made its step is what the candidates
(:mod:`dreamgym.models.candidates`) are told; they draw what else happens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.joint import drop_unlikely
from dreamgym.models.motion import REACH, STEPS, Moving, brightest, shown_around, step_number, step_pixels
from dreamgym.models.patches import places_around, places_around_wrapped
from dreamgym.models.relations import Relations
from dreamgym.models.things import Things
from dreamgym.streams import anew, sample_categorical

_SEEN = 10
"""Pixels to every side of a thing that are looked at."""

_MIRRORS = ((1, 1), (1, -1), (-1, 1))
"""Signs of a step that goes on, and of one that bounces off something upright or level."""

_NEAR = 3
"""Pixels by which a step may differ from the last one or its mirror images and be known as such a change."""

_CHANGES = (2 * _NEAR + 1) ** 2

_SIDE = 2 * REACH + 1
"""Rows, and columns, that a thing may move by."""

_ROWS = 8
"""Rows of pixels that :class:`StepReward` does not tell apart."""

_OUTSIDE = 10.0
"""By which the score of a step out of the screen is less, and that of going where nothing ever went."""

_OTHER = 1_000
"""Which of the numbers made anew of a cell's uniform one its step is drawn by (:func:`dreamgym.streams.anew`)."""


def leaving(things: Things, origin: Tensor, size: tuple[int, int]) -> Tensor:
    """Which steps carry which thing out of the screen, (number + filling, STEPS) bool.

    Args:
        things: that make them.
        origin: (2,) int64, row and column of the grid, in pixels, where the screen begins.
        size: height and width of the frame in pixels.
    """
    pixels = torch.tensor(size, device=origin.device)
    at = (things.centre - origin) % pixels
    ends = at[:, :, None] + torch.arange(-REACH, REACH + 1, device=origin.device)
    row, column = ((ends < 0) | (ends >= pixels[:, None])).unbind(1)
    return (row[:, :, None] | column[:, None]).flatten(1)


class StepHead(nn.Module):
    """p(step of each thing | features, z_{t-1}, z_t), or of what was done and of older latents instead of features."""

    _signs: Tensor
    _square: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        hidden: int,
        dropout: float = 0.3,
        wraps: bool = False,
        rewards: int = 0,
        permanence: bool = False,
        actions: int = 0,
        memory: int = 2,
    ) -> None:
        """Build the head.

        Args:
            channels: of the features.
            size: height and width of the frame in pixels.
            hidden: units of its layers.
            dropout: share of the first layer's units that are not seen, in training: returned balls are few.
            wraps: whether cells at opposite edges are neighbours.
            rewards: classes of the step's reward that it is told; 0 is not told.
            permanence: whether it is given things that are hidden.
            actions: numbers that say what was done. If there are any, it is told them instead of the features, and
                the rows and the columns of a step have scores of their own; 0 gives every step its own.
            memory: latents that it sees around a thing.
        """
        super().__init__()
        self.wraps = wraps
        self.hidden = nn.Parameter(torch.zeros(hidden)) if permanence else None
        self.rewarded = nn.Embedding(rewards, hidden) if rewards else None
        if self.rewarded is not None:
            nn.init.zeros_(self.rewarded.weight)
        self.seen = nn.Linear(memory * (2 * _SEEN + 1) ** 2, hidden)
        self.around = None if actions else nn.Linear(9 * channels, hidden, bias=False)
        self.done = nn.Linear(actions, hidden, bias=False) if actions else None
        self.others = Relations(size, hidden)
        self.before = nn.Embedding(STEPS + 1, hidden)
        self.row, self.column = (nn.Embedding(pixels, hidden) for pixels in size)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(hidden, hidden)
        self.steps = None if actions else nn.Linear(hidden, STEPS + 1)
        self.apart = nn.Linear(hidden, 2 * _SIDE + 1) if actions else None
        self.change = nn.Linear(hidden, len(_MIRRORS) * _CHANGES)
        for table in (self.before, self.row, self.column):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.zeros_(self.change.bias)
        with torch.no_grad():
            # What went on so far goes on: from there it learns where not.
            self.change.bias[_CHANGES // 2] = 5.0
        signs = torch.tensor(_MIRRORS)
        near = torch.arange(-_NEAR, _NEAR + 1)
        self.register_buffer("_signs", signs, persistent=False)
        self.register_buffer("_square", torch.cartesian_prod(near, near), persistent=False)

    def forward(
        self,
        given: Tensor,
        moving: Moving,
        things: Things,
        latents: Sequence[Tensor],
        pictures: Tensor,
        rest: Tensor,
        origin: Tensor,
        rewarded: Tensor | None = None,
        goes: Tensor | None = None,
    ) -> Tensor:
        """Scores of every step of every thing.

        Args:
            given: the features (batch, channels, height, width), or what was done (batch, actions).
            moving: of :func:`dreamgym.models.motion.find_moving`.
            things: of :func:`dreamgym.models.things.find_things`.
            latents: each (batch, height, width) int64: z_t, z_{t-1} and what else was seen before, newest first.
            pictures: (codes, cell, cell) float32 in [0, 1], what a code looks like.
            rest: (height, width) int64, the codes of the background.
            origin: (2,) int64, row and column of the grid, in pixels, where the screen begins.
            rewarded: (batch,) int64, classes of the step's reward, where the head is told them.
            goes: (number + filling,) bool, which things may go; None: all of them.

        Returns:
            (things, STEPS + 1) float32; the last step is that it is not to be found any more.
        """
        cells = moving.cells[things.cell]
        corner, side = things.centre - _SEEN, 2 * _SEEN + 1
        crops = [
            shown_around(latent, pictures, rest, cells[:, 0], corner, side, self.wraps).flatten(1) for latent in latents
        ]
        step, (row, column) = moving.step[things.cell], things.centre.unbind(1)
        hidden = self.seen(torch.cat(crops, dim=1)) + self._given(given, cells) + self.before(step)
        hidden = hidden + self.row(row) + self.column(column) + self.others(moving, things, origin)
        if self.rewarded is not None and rewarded is not None:
            hidden = hidden + self.rewarded(rewarded[cells[:, 0]])
        if self.hidden is not None:
            hidden = hidden + self.hidden * moving.hidden[things.cell][:, None]
        hidden = self.dropout(F.relu(hidden))
        hidden = hidden + F.relu(self.mix(hidden))
        # A change of the last step or of its mirror image is one of the steps, where the last one is known.
        to = (step_pixels(step)[:, None, None] * self._signs[:, None] + self._square).flatten(1, 2)
        inside = (to.abs() <= REACH).all(dim=-1) & (step < STEPS)[:, None]
        number = torch.where(inside, step_number(to), STEPS + 1)
        scores = F.pad(self._every(hidden).float(), (0, 1)).scatter_add(1, number, self.change(hidden).float())
        # A ball that would have left the screen before it is worth a point was never seen, and what was not seen has
        # some chance.
        leaves = leaving(things, origin, (len(self.row.weight), len(self.column.weight)))
        stays = torch.zeros_like(leaves[:, 0]) if goes is None else ~goes
        unlikely = torch.cat([leaves, stays[:, None]], dim=1)
        return (scores[:, :-1] - _OUTSIDE * unlikely.float())[: things.number]

    def _given(self, given: Tensor, cells: Tensor) -> Tensor:
        """What things in cells (count, 3) are told of what the trunk found around them, or of what was done."""
        if self.done is not None:
            return self.done(given)[cells[:, 0]]
        assert self.around is not None
        maps = given.permute(0, 2, 3, 1)
        if not self.wraps:
            maps = F.pad(maps, (0, 0, 1, 1, 1, 1))
        around = places_around_wrapped if self.wraps else places_around
        places = around(cells, maps.shape[1], maps.shape[2], 1)
        return self.around(maps.reshape(-1, maps.shape[-1]).index_select(0, places.flatten()).view(len(cells), -1))

    def _every(self, hidden: Tensor) -> Tensor:
        """Scores (count, STEPS + 1) of all steps, wherever the last one went."""
        if self.apart is None:
            assert self.steps is not None
            return self.steps(hidden)
        rows, columns, gone = self.apart(hidden).split([_SIDE, _SIDE, 1], dim=1)
        return torch.cat([(rows[:, :, None] + columns[:, None]).flatten(1), gone], dim=1)

    @staticmethod
    def draw(
        scores: Tensor, moving: Moving, things: Things, uniforms: Tensor, temperature: float, least: float
    ) -> Tensor:
        """Draw a step for every thing.

        Args:
            scores: of :meth:`forward`.
            moving: whose cells.
            things: whose scores.
            uniforms: (batch, height, width) in [0, 1).
            temperature: divides the scores; 0 takes the most likely step.
            least: see :func:`dreamgym.models.joint.drop_unlikely`.

        Returns:
            (cells,) int64, the step of each cell.
        """
        first = things.cell[: things.number]
        own = uniforms[tuple(moving.cells[first].T)]
        # What is hidden may have been where something else is now.
        own = torch.where(moving.hidden[first], anew(own, _OTHER + 1), anew(own, _OTHER))
        return sample_categorical(drop_unlikely(scores, least), own, temperature)[things.thing]


class StepReward(nn.Module):
    """What the place and the last step of each thing say of the reward: scores that are summed over things.

    A ball in the last column is worth a point, and was seen in it in few of many steps: told of it in so many words,
    the reward is learned from those few.
    """

    def __init__(self, size: tuple[int, int], hidden: int = 64, dropout: float = 0.2) -> None:
        """Build the network for frames of ``size`` pixels, with so many units, of which ``dropout`` are not seen."""
        super().__init__()
        self.row, self.column = (nn.Embedding(pixels, hidden) for pixels in (-(-size[0] // _ROWS), size[1]))
        self.given = nn.Linear(7, hidden)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(hidden, hidden)
        self.scores = nn.Linear(hidden, 3, bias=False)
        for table in (self.row, self.column):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.scores.weight)

    def forward(self, moving: Moving, things: Things, batch: int) -> Tensor:
        """Scores (batch, 3) of the rewards -1, 0 and 1."""
        step = moving.step[things.cell]
        known = (step < STEPS).float()
        pixels = step_pixels(step) / REACH * known[:, None]
        brightness = brightest(moving.shown[things.cell])
        given = torch.stack([2 * brightness, things.mass / 4, known], dim=1)
        given = torch.cat([given, pixels, pixels.sign()], dim=1)
        placed = self.row(things.centre[:, 0] // _ROWS) + self.column(things.centre[:, 1])
        hidden = self.dropout(F.relu(placed + self.given(given)))
        scores = self.scores(F.relu(self.mix(hidden))).float()[: things.number]
        which = moving.cells[things.cell[: things.number], 0]
        return torch.zeros(batch, 3, device=scores.device).index_add(0, which, scores)
