"""Drawing the cells of a latent one after the other, so that they fit together.

The paper's head (Robine et al. 2023, Eq. 15) draws every cell on its own. Where a code shows one small thing and the
model is not sure in which of two cells it is, both cells stay empty half of the time: the thing is gone for good. Here
the cells are drawn in four groups, as in the autoregressive models of images (van den Oord et al. 2016, PixelCNN; the
groups are those of Reed et al. 2017, "Parallel multiscale autoregressive density estimation"), each given those drawn
before:

    0 2
    3 1    repeated over the map.

Neighbours are always of different groups. All groups of a known latent are computed at once in training.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.streams import sample_categorical

ORDER = ((0, 0), (1, 1), (0, 1), (1, 0))
"""(row, column) modulo 2 of each group's cells, in the order in which they are drawn."""


def drop_unlikely(scores: Tensor, least_chance: float) -> Tensor:
    """Rule out codes whose chance at temperature 1 is below a share of the likeliest one's.

    Args:
        scores: (batch, codes, height, width).
        least_chance: the share; 0 rules out none.

    Returns:
        The same with -inf for those codes.
    """
    if not least_chance:
        return scores
    least = scores.amax(dim=1, keepdim=True) + math.log(least_chance)
    return scores.masked_fill(scores < least, -torch.inf)


def draw_codes(scores: Tensor, uniforms: Tensor, temperature: float, least_chance: float) -> Tensor:
    """Draw a code for every cell.

    Nearly all cells are nearly certain. On a CPU only those are looked at closely whose uniform number could mean
    another code than the likeliest one: the codes are the same.

    Args:
        scores: (batch, height, width, codes).
        uniforms: (batch, height, width) in [0, 1).
        temperature: divides the scores; 0 takes the likeliest code.
        least_chance: see :func:`drop_unlikely`.

    Returns:
        (batch, height, width) int64.
    """
    if temperature == 0.0:
        return scores.argmax(dim=-1)
    if scores.device.type != "cpu":
        return sample_categorical(drop_unlikely(scores.movedim(-1, 1), least_chance), uniforms, temperature)
    flat, numbers = scores.flatten(0, 2), uniforms.flatten()
    best, drawn = flat.max(dim=1)
    # Of differences, so that the sum keeps its digits where the scores are large.
    chance = 1 / ((flat - best[:, None]) / temperature).exp_().sum(dim=1)
    # Inverting the distribution function in any order of the codes gives the likeliest one between these bounds. What
    # is no number lies between none.
    margin = 1 - chance + 1e-5
    open_cells = (~((numbers >= margin) & (numbers < 1 - margin))).nonzero()[:, 0]
    chosen = drop_unlikely(flat[open_cells], least_chance)
    drawn[open_cells] = sample_categorical(chosen, numbers[open_cells], temperature)
    return drawn.view(uniforms.shape)


class JointLatentHead(nn.Module):
    """p(z) = product over the groups g of p(z_g | features, z of the groups before g)."""

    earlier: Tensor

    def __init__(self, channels: int, num_codes: int, least_chance: float = 0.0, embedding: int = 32) -> None:
        """Build the head.

        Args:
            channels: of the features.
            num_codes: codes of a cell.
            least_chance: see :func:`drop_unlikely`.
            embedding: channels in which a cell is shown to the cells beside it.
        """
        super().__init__()
        self.num_codes, self.least_chance = num_codes, least_chance
        self.codes = nn.Embedding(num_codes, embedding)
        self.neighbours = nn.ModuleList(nn.Conv2d(embedding, channels, 3, stride=2, bias=False) for _ in ORDER[1:])
        self.scores = nn.Conv2d(channels, num_codes, 1)
        # (groups - 1, 1, 3, 3): which of a cell's neighbours are drawn before it.
        offsets = torch.arange(-1, 2)
        earlier = torch.zeros(len(ORDER) - 1, 1, 3, 3)
        for group, (row, column) in enumerate(ORDER[1:], start=1):
            for before in ORDER[:group]:
                rows, columns = (offsets + row) % 2 == before[0], (offsets + column) % 2 == before[1]
                earlier[group - 1, 0] += (rows[:, None] & columns[None]).float()
        self.register_buffer("earlier", earlier, persistent=False)

    def logits(self, features: Tensor, latents: Tensor) -> Tensor:
        """Scores of every cell, given the cells of earlier groups.

        Args:
            features: (batch, channels, height, width).
            latents: (batch, height, width) int64.

        Returns:
            (batch, codes, height, width) float32.
        """
        shown = self._shown(latents)
        hidden = torch.empty_like(features)
        for group, (row, column) in enumerate(ORDER):
            hidden[:, :, row::2, column::2] = self._hidden(group, features, shown)
        return self.scores(hidden).float()

    def draw(self, features: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """Draw a latent group by group.

        Args:
            features: (batch, channels, height, width).
            uniforms: (batch, height, width) in [0, 1).
            temperature: divides the scores; 0 takes the most likely code of each cell.

        Returns:
            (batch, height, width) int64.
        """
        latents = torch.zeros(uniforms.shape, dtype=torch.int64, device=features.device)
        shown = self._shown(latents)
        # Without the padding; what is written here is read by the groups that follow.
        inside = shown[:, :, 1:-1, 1:-1]
        for group, (row, column) in enumerate(ORDER):
            scores = self.scores(self._hidden(group, features, shown)).movedim(1, -1).float()
            drawn = draw_codes(scores, uniforms[:, row::2, column::2], temperature, self.least_chance)
            latents[:, row::2, column::2] = drawn
            inside[:, :, row::2, column::2] = self.codes(drawn).movedim(-1, 1).to(inside.dtype)
        return latents

    def _shown(self, latents: Tensor) -> Tensor:
        return F.pad(self.codes(latents).movedim(-1, 1), (1, 1, 1, 1))

    def _hidden(self, group: int, features: Tensor, shown: Tensor) -> Tensor:
        """What the scores of one group's cells are made of: (batch, channels, height / 2, width / 2)."""
        row, column = ORDER[group]
        own = features[:, :, row::2, column::2]
        if group:
            neighbours = self.neighbours[group - 1]
            assert isinstance(neighbours, nn.Conv2d)
            weight = neighbours.weight * self.earlier[group - 1]
            own = own + F.conv2d(shown[:, :, row:, column:], weight, stride=2)[:, :, : own.shape[2], : own.shape[3]]
        return F.relu(own)
