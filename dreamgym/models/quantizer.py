"""The codebook: vector quantisation learned by exponential moving averages.

Source: van den Oord et al. 2017, Appendix A; Robine et al. 2023, Sect. 2.3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.errors import ConfigError


@dataclass(frozen=True)
class QuantizerConfig:
    """Settings of the codebook.

    Attributes:
        num_codes: K, the number of codes (at most 256: latents are stored as bytes).
        embedding_dim: length of a code.
        decay: of the moving averages.
        epsilon: Laplace smoothing of the counts.
        dead_below: a code used less than this share of an even share is dead and may be re-seeded; 0 never.
        released_bias: True corrects the start-up bias of the sums but not of the counts, as the authors' released
            code does: early codes are inflated about a hundredfold, which by accident keeps most of them alive.
    """

    num_codes: int = 128
    embedding_dim: int = 32
    decay: float = 0.99
    epsilon: float = 1e-5
    dead_below: float = 0.02
    released_bias: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 < self.num_codes <= 256:
            raise ConfigError(
                f"num_codes: expected 2 to 256 (a latent cell is stored as one byte), got {self.num_codes}."
            )


_SAME = 1e4
"""Vectors are the same that are not further apart than about one over this."""

_NEAR = 1e-5
"""Vectors nearer to a seed than this share of their spread are no seeds: an encoder's rounding, not another kind."""

_LLOYD = 10
"""Rounds of k-means after the seeds."""

_FRESH = 5.0
"""Count that a re-seeded code begins with, in dead codes' thresholds.

With the default decay it is re-seeded again after 160 updates without a cell; an even share would keep it idle for 390.
"""


class VectorQuantizer(nn.Module):
    """Replace vectors by their nearest codes; learn the codes by moving averages, not by gradients."""

    codes: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, config: QuantizerConfig | None = None) -> None:
        """Draw the codes from a standard normal, the distribution that the encoder's last BatchNorm aims at."""
        super().__init__()
        self.config = config = config or QuantizerConfig()
        codes = torch.randn(config.num_codes, config.embedding_dim)
        cold = config.released_bias
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.zeros(config.num_codes) if cold else torch.ones(config.num_codes))
        self.register_buffer("sums", torch.zeros_like(codes) if cold else codes.clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code by Euclidean distance.

        Args:
            vectors: (count, embedding_dim) float32.

        Returns:
            (count,) int64.
        """
        distances = self.codes.square().sum(dim=1) - 2 * vectors @ self.codes.T
        return distances.argmin(dim=1)

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the codes towards the vectors assigned to them (van den Oord et al. 2017, Eq. 6-8).

        Args:
            vectors: (count, embedding_dim) float32, encoder outputs.
            indices: (count,) int64, the code of each.
        """
        decay, size = self.config.decay, self.config.num_codes
        self.updates += 1
        batch_counts = torch.bincount(indices, minlength=size).to(vectors.dtype)
        batch_sums = torch.zeros_like(self.sums).index_add_(0, indices, vectors)
        self.counts.lerp_(batch_counts, 1 - decay)
        self.sums.lerp_(batch_sums, 1 - decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.config.epsilon) / (total + size * self.config.epsilon) * total
        sums = self.sums / (1 - decay**self.updates) if self.config.released_bias else self.sums
        self.codes.copy_(sums / smoothed[:, None])

    def dead(self) -> Tensor:
        """Return (num_codes,) bool: codes used less than ``dead_below`` of an even share."""
        return self.counts < self.config.dead_below * self.counts.mean()

    @torch.no_grad()
    def seed_codes(self, which: Tensor, vectors: Tensor) -> None:
        """Put codes on given vectors, with a small fresh count: they follow the cells they win or are soon dead again.

        Args:
            which: (num_codes,) bool, the codes to move.
            vectors: (number of True in ``which``, embedding_dim) float32.
        """
        even_share = self.counts.mean()
        fresh = even_share * min(1.0, _FRESH * self.config.dead_below) if self.config.dead_below else even_share
        self.codes[which] = vectors
        self.counts[which] = fresh
        self.sums[which] = vectors * fresh

    @torch.no_grad()
    def set_codes(self, codes: Tensor, counts: Tensor) -> None:
        """Take a whole codebook.

        Args:
            codes: (at most num_codes, embedding_dim) float32. Codes that are left over lie beyond the first, where the
                encoder puts nothing, and yet not so far that the scale of the codebook is lost.
            counts: how often each is the nearest.
        """
        spare = self.config.num_codes - len(codes)
        beyond = 2 * codes[:1] - codes.mean(dim=0)
        self.codes.copy_(torch.cat([codes, beyond.expand(spare, -1)]))
        # On the scale of the moving averages, so that later updates move the codes as they moved the others.
        self.counts.copy_(F.pad(counts * (self.counts.sum() / counts.sum()), (0, spare)))
        self.sums.copy_(self.codes * self.counts[:, None])


@torch.no_grad()
def tell_apart(vectors: Tensor, counts: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Merge vectors that are the same.

    Args:
        vectors: (any number, dim) float32, on the CPU.
        counts: (that number,) float32, how often each was seen.
        most: of more different ones as many are drawn, by how often they were seen.
        generator: on the CPU.

    Returns:
        (different vectors, how often each was seen).
    """
    # What differs differs along nearly every line.
    line = torch.randn(vectors.shape[1], generator=generator, dtype=torch.float64)
    keys, which = torch.unique((vectors.double() @ line * _SAME).round(), return_inverse=True)
    first = torch.full((len(keys),), len(vectors)).scatter_reduce(0, which, torch.arange(len(vectors)), "amin")
    vectors, counts = vectors[first], torch.zeros(len(keys)).index_add(0, which, counts)
    if len(vectors) > most:
        drawn = torch.multinomial(counts, most, generator=generator)
        vectors, counts = vectors[drawn], counts[drawn]
    return vectors, counts


@torch.no_grad()
def cluster(vectors: Tensor, counts: Tensor, num_codes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """k-means from careful seeds (Arthur and Vassilvitskii 2007); each kind a cluster where there are no more.

    Args:
        vectors: (any number, dim) float32, on the CPU.
        counts: (that number,) float32, how often each was seen.
        num_codes: most clusters.
        generator: on the CPU.

    Returns:
        (centres (at most num_codes, dim), how often each is the nearest), the most frequent vector's first.
    """
    chosen = [int(counts.argmax())]
    squares = torch.full_like(counts, torch.inf, dtype=torch.float64)
    near = _NEAR**2 * (vectors - vectors.mean(dim=0)).square().sum(dim=1).mean().double()
    while True:
        squares = torch.minimum(squares, (vectors - vectors[chosen[-1]]).square().sum(dim=1).double())
        squares[squares <= near] = 0
        if len(chosen) == min(num_codes, len(vectors)) or squares.max() == 0:
            break
        chosen.append(int(torch.multinomial(squares * counts, 1, generator=generator)))
    centres, share = vectors[chosen], counts[chosen]
    for _ in range(_LLOYD):
        nearest = torch.cdist(vectors, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        share = torch.zeros(len(centres)).index_add(0, nearest, counts)
        sums = torch.zeros_like(centres).index_add(0, nearest, vectors * counts[:, None])
        centres = torch.where(share[:, None] > 0, sums / share[:, None].clamp(min=1e-9), centres)
    return centres, share


@torch.no_grad()
def spread_out(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw vectors far from each other: each in proportion to its squared distance from those drawn before it.

    Arthur and Vassilvitskii 2007, "k-means++: The advantages of careful seeding".

    Args:
        vectors: (any number, dim) float32.
        count: how many; some are drawn twice where there are fewer different ones.
        generator: on the CPU.

    Returns:
        (count, dim) float32.
    """
    drawn = [int(torch.randint(len(vectors), (), generator=generator))]
    distances = torch.full((len(vectors),), torch.inf, device=vectors.device)
    for _ in range(count - 1):
        distances = torch.minimum(distances, (vectors - vectors[drawn[-1]]).square().sum(dim=1))
        chances = distances.double().cumsum(0).cpu()
        point = torch.rand((), generator=generator, dtype=torch.float64) * chances[-1]
        drawn.append(min(int(torch.searchsorted(chances, point, right=True)), len(vectors) - 1))
    return vectors[torch.tensor(drawn, device=vectors.device)]


def perplexity(indices: Tensor, num_codes: int) -> Tensor:
    """Effective number of codes in use: exp of the entropy of their frequencies.

    Args:
        indices: any shape, int64.
        num_codes: K.

    Returns:
        Scalar in [1, K].
    """
    share = torch.bincount(indices.flatten(), minlength=num_codes).float()
    share = share / share.sum().clamp(min=1)
    return torch.exp(-(share * torch.log(share.clamp(min=1e-12))).sum())
