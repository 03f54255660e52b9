"""Drawing only the cells that may change, one after the other.

From one latent to the next few cells change: in Pong 8 of 560. A gate, one number a cell, tells which may; all others
keep their code. The candidates are drawn in turn, so that they fit together: where a code shows one small thing and the
model is not sure in which of two cells it is, cells drawn on their own (Robine et al. 2023, Eq. 15) both stay empty
half of the time, and the thing is gone for good. The order is that of the autoregressive models of images (van den Oord
et al. 2016, PixelCNN) in groups (Reed et al. 2017, "Parallel multiscale autoregressive density estimation"), each given
what is known by then of the 5x5 cells around: the codes that stay and those drawn before.

    0 2
    3 1    repeated over the map: neighbours are always of different groups.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.joint import drop_unlikely
from dreamgym.models.layers import Conv3x3, side_by_side
from dreamgym.models.patches import BLOCK, pad_maps, places_around, places_around_wrapped
from dreamgym.models.places import UNSEEN
from dreamgym.streams import sample_categorical

GROUPS = 4
_REACH = 2
"""Cells to every side of a candidate that it is shown the codes of."""

_PLANNED = 256
"""Rows in which the products of a fit come: a matrix library plans and compiles each number of them anew."""

_MOST = 48
"""Candidates of a latent that are fitted to, in the mean of a batch, besides the cells that change."""


class CandidateHead(nn.Module):
    """p(z_{t+1}) from a map of features and z_t, computed for few cells."""

    places: Tensor | None

    def __init__(
        self,
        channels: int,
        num_codes: int,
        depth: int,
        hidden: int,
        threshold: float,
        least_chance: float,
        embedding: int = 16,
        wraps: bool = False,
        motion: bool = False,
        places: Tensor | None = None,
        rewards: int = 0,
    ) -> None:
        """Build the head.

        Args:
            channels: of the features.
            num_codes: codes of a cell.
            depth: channels of a code's embedding in the codebook.
            hidden: units of the layers that see one candidate.
            threshold: chance of a change from which a cell is a candidate.
            least_chance: see :func:`dreamgym.models.joint.drop_unlikely`.
            embedding: channels in which a cell is shown to the candidates around it.
            wraps: whether cells at opposite edges are neighbours.
            motion: whether it is told the latent that would come if what moves went on.
            places: (height, width, num_codes) bool, which codes are drawn where; None draws all everywhere.
            rewards: classes of the step's reward that it is told; 0 is not told.
        """
        super().__init__()
        self.num_codes, self.threshold, self.least_chance = (
            num_codes,
            math.log(threshold / (1 - threshold)),
            least_chance,
        )
        self.wraps = wraps
        self.register_buffer("places", places)
        self.gate = Conv3x3(channels, 1, wraps)
        nn.init.constant_(self.gate.bias, -7.0)  # pyright: ignore[reportArgumentType]
        self.motion = motion
        if motion:
            # What went on so far goes on: from there it learns where not.
            self.gate_onward, self.onward = Conv3x3(channels, 1, wraps), nn.Linear(depth, hidden, bias=False)
            self.go_on = nn.Linear(hidden, 1)
            nn.init.constant_(self.gate_onward.bias, 3.0)  # pyright: ignore[reportArgumentType]
            nn.init.constant_(self.go_on.bias, 2.0)
        self.rewarded = nn.Embedding(rewards, hidden) if rewards else None
        self.gate_rewarded = nn.Embedding(rewards, 1) if rewards else None
        for told in (self.rewarded, self.gate_rewarded):
            if told is not None:
                nn.init.zeros_(told.weight)
        self.around = nn.Linear(9 * channels, hidden)
        self.current = nn.Linear(depth, hidden, bias=False)
        self.copied = nn.Embedding(num_codes, hidden)
        self.codes = nn.Linear(depth, embedding, bias=False)
        self.unknown = nn.Parameter(torch.zeros(2, embedding))
        self.neighbours = nn.Linear((2 * _REACH + 1) ** 2 * embedding, hidden, bias=False)
        self.mix = nn.Linear(hidden, hidden)
        self.scores = nn.Linear(hidden, num_codes)
        self.likeness = nn.Linear(hidden, depth, bias=False)
        nn.init.zeros_(self.likeness.weight)
        nn.init.zeros_(self.copied.weight)

    def prepare(self, features: Tensor, latents: Tensor, moved: Tensor | None = None) -> Tensor:
        """What a prediction holds: features, where things go, the gate's log-odds of a change, and the current codes.

        Args:
            features: (batch, channels, height, width).
            latents: (batch, height, width) int64, the current codes.
            moved: (batch, height, width) int64, those that would come if what moves went on; only with ``motion``.

        Returns:
            (batch, channels + 2, height, width), or + 3 with ``motion``.
        """
        gate, parts = self.gate(features), [features]
        if self.motion:
            onward = self.gate_onward(features)
            if moved is None:
                parts.append(onward)
            else:
                gate = gate + onward * (moved != latents)[:, None]
                parts.append(moved[:, None].to(features.dtype))
        return side_by_side([*parts, gate, latents[:, None].to(features.dtype)])

    def tell(self, prepared: Tensor, moved: Tensor, rewarded: Tensor | None = None) -> Tensor:
        """Of :meth:`prepare` without ``moved`` what it would be with it, and with the rewards' classes (batch,)."""
        # Split, not sliced: each slice's gradient would fill a tensor of its own.
        features, others = prepared.split([prepared.shape[1] - 3, 3], dim=1)
        onward, gate, current = others.unbind(1)
        gate = gate + onward * (moved != current.long())
        if self.gate_rewarded is not None and rewarded is not None:
            gate = gate + self.gate_rewarded(rewarded)[:, :, None].to(gate.dtype)
        return side_by_side([features, torch.stack([moved.to(prepared.dtype), gate, current], dim=1)])

    def loss(self, prepared: Tensor, latents: Tensor, codebook: Tensor, rewarded: Tensor | None = None) -> Tensor:
        """Cross-entropies of the gate, over all cells, and of the candidates' codes.

        Args:
            prepared: of :meth:`prepare`.
            latents: (batch, height, width) int64, the codes that came.
            codebook: (num_codes, depth), what the codes look like.
            rewarded: (batch,) int64, classes of the step's reward, where the head is told them.

        Returns:
            (batch,) nats.
        """
        gate, current = prepared[:, -2].float(), prepared[:, -1].long()
        changed = latents != current
        # A gate that has not learned yet lets too many in.
        likely = (gate > self.threshold).flatten().nonzero()[:, 0]
        if len(likely) > _MOST * len(latents):
            likely = likely[gate.flatten()[likely].topk(_MOST * len(latents), sorted=False).indices]
        turns = _turns(changed.flatten().index_fill(0, likely, True).view_as(changed))
        cells, scores = self._given(prepared, turns, latents, codebook, rewarded)
        drawn = F.cross_entropy(scores, latents[tuple(cells.T)], reduction="none")
        gates = F.binary_cross_entropy_with_logits(gate, changed.float(), reduction="none").sum(dim=(1, 2))
        return gates.index_add(0, cells[:, 0], drawn)

    def logits(self, prepared: Tensor, latents: Tensor, codebook: Tensor, rewarded: Tensor | None = None) -> Tensor:
        """Scores of every cell, given the cells drawn before it.

        Args:
            prepared: of :meth:`prepare`.
            latents: (batch, height, width) int64.
            codebook: (num_codes, depth).
            rewarded: (batch,) int64, classes of the step's reward, where the head is told them.

        Returns:
            (batch, codes, height, width) float32; a cell that is no candidate changes with the gate's chance, to all
            codes alike.
        """
        gate, current = prepared[:, -2].float(), prepared[:, -1].long()
        cells, scores = self._given(prepared, self._turns_of(gate), latents, codebook, rewarded)
        each = F.logsigmoid(gate) - math.log(max(1, self.num_codes - 1))
        rows = (
            each[..., None]
            .expand(*gate.shape, self.num_codes)
            .scatter(-1, current[..., None], F.logsigmoid(-gate)[..., None])
        )
        return rows.index_put(tuple(cells.T), scores).movedim(-1, 1)

    def draw(
        self,
        prepared: Tensor,
        uniforms: Tensor,
        temperature: float,
        codebook: Tensor,
        every: bool | None = None,
        rewarded: Tensor | None = None,
    ) -> Tensor:
        """Draw a latent group by group.

        Args:
            prepared: of :meth:`prepare`.
            uniforms: (batch, height, width) in [0, 1).
            temperature: divides the scores; 0 takes the most likely code of each candidate.
            codebook: (num_codes, depth).
            every: compute the scores of all cells, candidates or not: the latents are the same. None does so on an
                accelerator, which would have to be waited for to learn how many candidates there are.
            rewarded: (batch,) int64, classes of the step's reward, where the head is told them.

        Returns:
            (batch, height, width) int64.
        """
        gate, current = prepared[:, -2], prepared[:, -1].long()
        turns = self._turns_of(gate)
        parts = _every_cell(turns) if every or (every is None and turns.device.type != "cpu") else _candidates(turns)
        latents, known = self._edged(current, self.num_codes + 1), self._edged(turns, -1)
        inside = latents if self.wraps else latents[:, _REACH:-_REACH, _REACH:-_REACH]
        # What a dream draws does not depend on how many cells of others are drawn with it.
        blocks = [_filled(cells) for cells in parts]
        owns = self._own(prepared, torch.cat(blocks), codebook, rewarded).split([len(cells) for cells in blocks])
        table = self._table(codebook)
        for cells, filled, own in zip(parts, blocks, owns, strict=True):
            if len(cells) == 0:
                continue
            where = tuple(cells.T)
            going = self._going(prepared, filled)
            scores = self._scores(own, latents, known, filled, table, codebook, going)[: len(cells)]
            drawn = sample_categorical(drop_unlikely(scores, self.least_chance), uniforms[where], temperature)
            inside[where] = torch.where(turns[where] < 0, current[where], drawn)
        return inside.contiguous()

    def _turns_of(self, gate: Tensor) -> Tensor:
        """The group in which a cell is drawn, -1 for those that stay; what is no number is never certain to stay."""
        return _turns(~(gate <= self.threshold))

    def _given(
        self, prepared: Tensor, turns: Tensor, latents: Tensor, codebook: Tensor, rewarded: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The candidates (count, 3), and their scores (count, codes) where ``latents`` is what is drawn."""
        cells = (turns >= 0).nonzero()
        seen = self._edged(latents, self.num_codes + 1), self._edged(turns, -1)
        # Products of as many rows as before need not be planned anew.
        filled = _filled(cells, _PLANNED) if len(cells) else cells
        own, going = self._own(prepared, filled, codebook, rewarded), self._going(prepared, filled)
        scores = self._scores(own, *seen, filled, self._table(codebook), codebook, going)
        return cells, scores[: len(cells)]

    def _own(self, prepared: Tensor, cells: Tensor, codebook: Tensor, rewarded: Tensor | None) -> Tensor:
        """What candidates (count, 3) int64 are shown of the features around: (count, hidden)."""
        maps = prepared.permute(0, 2, 3, 1)
        if not self.wraps:
            maps = F.pad(maps, (0, 0, 1, 1, 1, 1))
        places = self._around(cells, maps, 1)
        # Of the rows that are looked up alone the features are taken: all of them would be copied for it.
        rows = maps.reshape(-1, maps.shape[-1]).index_select(0, places.flatten())
        shown = rows[:, : self.gate.in_channels].reshape(len(cells), self.around.in_features)
        current = prepared[:, -1].long()[tuple(cells.T)]
        # Alike where codes look alike, and each with something of its own, so that it can be kept.
        table = self.current(codebook) + self.copied.weight
        own = self.around(shown) + F.embedding(current, table)
        if self.motion:
            own = own + F.embedding(prepared[:, -3].long()[tuple(cells.T)], self.onward(codebook))
        if self.rewarded is not None and rewarded is not None:
            own = own + self.rewarded(rewarded[cells[:, 0]])
        return own

    def _going(self, prepared: Tensor, cells: Tensor) -> Tensor | None:
        """The code (count,) that each candidate has if what moves goes on, ``num_codes`` where nothing does."""
        if not self.motion:
            return None
        moved, current = (prepared[:, channel][tuple(cells.T)].long() for channel in (-3, -1))
        return torch.where(moved != current, moved, self.num_codes)

    def _edged(self, maps: Tensor, value: int) -> Tensor:
        """A copy of (batch, height, width) in which cells are looked up, padded where it does not wrap."""
        return maps.clone() if self.wraps else pad_maps(maps, _REACH, value)

    def _around(self, cells: Tensor, maps: Tensor, reach: int) -> Tensor:
        """Where the cells around some lie in flattened maps (batch, height, width, ...), padded unless they wrap."""
        places = places_around_wrapped if self.wraps else places_around
        return places(cells, maps.shape[1], maps.shape[2], reach)

    def _table(self, codebook: Tensor) -> Tensor:
        return torch.cat([self.codes(codebook), self.unknown.to(codebook.dtype)])

    def _scores(
        self,
        own: Tensor,
        latents: Tensor,
        turns: Tensor,
        cells: Tensor,
        table: Tensor,
        codebook: Tensor,
        going: Tensor | None,
    ) -> Tensor:
        """Scores (count, codes) of candidates, given edged latents and whose turn each cell is (-1: it stays)."""
        places = self._around(cells, latents, _REACH)
        around, when = latents.flatten()[places], turns.flatten()[places]
        mine = when[:, places.shape[1] // 2, None]
        around = torch.where(when < mine, around, self.num_codes)
        hidden = own + self.neighbours(F.embedding(around, table).flatten(1))
        hidden = hidden + self.mix(F.relu(hidden))
        hidden = F.relu(hidden)
        scores = (self.scores(hidden) + self.likeness(hidden) @ codebook.T).float()
        if going is not None:
            # One number, the same for all codes: how sure it is that what moves goes on.
            scores = F.pad(scores, (0, 1)).scatter_add(1, going[:, None], self.go_on(hidden).float())[:, :-1]
        return scores if self.places is None else scores - UNSEEN * ~self.places[cells[:, 1], cells[:, 2]]


def _turns(candidates: Tensor) -> Tensor:
    """(batch, height, width): the group in which a candidate is drawn; -1 for the other cells."""
    return torch.where(candidates, _groups(candidates), -1)


def _groups(maps: Tensor) -> Tensor:
    """(height, width): the group of every cell of (batch, height, width), on its device."""
    row, column = (torch.arange(size, device=maps.device) % 2 for size in maps.shape[1:])
    # 0 2
    # 3 1
    return torch.where(row[:, None] == column, row[:, None], 2 + row[:, None])


def _candidates(turns: Tensor) -> list[Tensor]:
    """Group by group the candidates, (count, 3) int64: batch, row, column."""
    cells = (turns >= 0).nonzero()
    mine = turns[tuple(cells.T)]
    return [cells[mine == group] for group in range(GROUPS)]


def _every_cell(turns: Tensor) -> list[Tensor]:
    """The same of all cells, without asking the device which are candidates."""
    batch, height, width = (torch.arange(size, device=turns.device) for size in turns.shape)
    return [
        torch.cartesian_prod(batch, height[first::2], width[second::2])
        for first, second in ((0, 0), (1, 1), (0, 1), (1, 0))
    ]


def _filled(cells: Tensor, block: int = BLOCK) -> Tensor:
    """Cells and copies of the first of them, up to a whole number of blocks.

    In products of few rows the last bits of one depend on how many there are.
    """
    return torch.cat([cells, cells[:1].expand(-len(cells) % block, -1)])
