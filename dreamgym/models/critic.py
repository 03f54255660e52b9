"""Which of the latents that dynamics draw would not come in the game: discriminator rejection sampling.

Where dynamics meet what they have not seen, much of their chance lies on what never happens: a ball that is in none of
the cells where it could be, each being unlikely. That no ball is there any more is far easier to see than where it has
to be, and holds for all places alike. A discriminator between the latents that came and those that were drawn knows the
ratio of their densities (Goodfellow et al. 2014, Proposition 1); what is drawn is kept with that chance, or drawn
again (Azadi et al. 2019, "Discriminator rejection sampling"). It learns from moments that the dynamics were not fitted
to: there they make the mistakes that they make in a dream.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.patches import BLOCK, pad_maps, places_around, wrap_maps

_REACH = 2
"""Cells to every side of a changed one that are looked at."""

_SHARE = 0.2
"""Of a cell in the sum of all, so that the first steps of a fit stay small."""


class Critic(nn.Module):
    """log p(z_{t+1}) / q(z_{t+1}), where p is the game and q the dynamics, from z_{t-1}, z_t and z_{t+1}."""

    def __init__(
        self, height: int, width: int, depth: int, scale: int, hidden: int, embedding: int = 8, wraps: bool = False
    ) -> None:
        """Build the network.

        Args:
            height: of a latent.
            width: of a latent.
            depth: channels of a code's embedding in the codebook.
            scale: side of the squares of cells that are told apart by their place.
            hidden: units of the layers that see one cell.
            embedding: channels in which a cell is shown.
            wraps: whether cells at opposite edges are neighbours.
        """
        super().__init__()
        self.wraps = wraps
        self._scale, self._squares = scale, (height // scale, width // scale)
        self.codes = nn.Linear(depth, embedding, bias=False)
        self.around = nn.Linear((2 * _REACH + 1) ** 2 * (3 * embedding + 1), hidden)
        self.place = nn.Embedding(self._squares[0] * self._squares[1], hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.together = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        for weights in (self.place.weight, self.score.weight, self.score.bias):
            nn.init.zeros_(weights)  # pyright: ignore[reportArgumentType]

    def forward(
        self, older: Tensor, newest: Tensor, drawn: Tensor, codebook: Tensor, everywhere: bool | None = None
    ) -> Tensor:
        """Judge by the sum of what the cells show that have just changed, or change now.

        Args:
            older: (batch, height, width) int64, z_{t-1}; ``num_codes`` where nothing was seen.
            newest: (batch, height, width) int64, z_t.
            drawn: (batch, height, width) int64, the z_{t+1} in question.
            codebook: (num_codes, depth).
            everywhere: look at all cells and count those that have changed, as None does on an accelerator.

        Returns:
            (batch,) float32, the logarithm of the ratio.
        """
        changed = ((older != newest) & (older < len(codebook))) | (newest != drawn)
        # Which cells have changed an accelerator would have to be waited for.
        everywhere = drawn.device.type != "cpu" if everywhere is None else everywhere
        changes = _all_cells(changed) if everywhere else changed.nonzero()
        cells = F.pad(changes, (0, 0, 0, -len(changes) % BLOCK))
        # Nothing seen, and nothing there, beyond the edge.
        table = F.pad(self.codes(codebook), (0, 0, 0, 1)).float()
        height, width = (size + 2 * _REACH for size in newest.shape[1:])
        around = places_around(cells, height, width, _REACH)
        maps = [
            wrap_maps(z, _REACH) if self.wraps else pad_maps(z, _REACH, len(codebook)) for z in (older, newest, drawn)
        ]
        before, now, then = (edged.flatten()[around] for edged in maps)
        shown = F.embedding(now, table)
        parts = (F.embedding(before, table) - shown, shown, F.embedding(then, table) - shown)
        seen = torch.cat([*parts, (now != then)[..., None].to(shown.dtype)], dim=-1).flatten(1)
        square = cells[:, 1] // self._scale * self._squares[1] + cells[:, 2] // self._scale
        hidden = F.relu(self.around(seen) + self.place(square))
        hidden = F.relu(hidden + self.mix(hidden))[: len(changes)].float()
        # What has gone in one cell may have come in another.
        batch = len(drawn)
        rows = batch + -batch % BLOCK
        if everywhere:
            counted = hidden.view(batch, changed[0].numel(), -1) * changed.flatten(1)[..., None]
            total = F.pad(_SHARE * counted.sum(dim=1), (0, 0, 0, rows - batch))
        else:
            total = hidden.new_zeros(rows, hidden.shape[1]).index_add(0, changes[:, 0], _SHARE * hidden)
        return self.score(F.relu(total + self.together(total)))[:batch, 0].float()


def _all_cells(maps: Tensor) -> Tensor:
    """Batch, row and column of every cell, (count, 3) int64, in their order."""
    return torch.cartesian_prod(*(torch.arange(size, device=maps.device) for size in maps.shape))


def critic_loss(came: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy of telling latents that came from those that were drawn.

    Args:
        came: (batch,) log-ratios of the former.
        drawn: (batch,) of the latter.

    Returns:
        (scalar, twice log 2 where nothing is told apart; the share of each that is told, detached).
    """
    loss = F.softplus(-came).mean() + F.softplus(drawn).mean()
    told = {"came": (came > 0).float().mean(), "drawn": (drawn < 0).float().mean()}
    return loss, {"loss": loss.detach(), **{name: share.detach() for name, share in told.items()}}
