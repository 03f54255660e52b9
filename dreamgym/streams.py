"""Random numbers that belong to a row: each dream has its own stream, a key and a counter.

A number is a hash of (key, counter), so what one dream draws never depends on which others step or are reset, nor on
any global generator. The hash is SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators") on int64 tensors, whose arithmetic wraps around on every device.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of value."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_MANTISSA_BITS = 23
"""One bit below float32's 24: the product of such a number below 1 and any float32 stays below that float32."""


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right (torch's own keeps the sign)."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 that scrambles every bit."""
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def _uniform(bits: Tensor) -> Tensor:
    """Int64 to float32 in [0, 1)."""
    return _shift(bits, 64 - _MANTISSA_BITS).to(torch.float32) * 2.0**-_MANTISSA_BITS


def anew(uniforms: Tensor, time: int) -> Tensor:
    """Other uniform numbers in place of some, each a hash of the number that it is for.

    Args:
        uniforms: any shape, float32 in [0, 1).
        time: others for every one, from 1.

    Returns:
        The same shape, as good as independent of what was given and of those of other times.
    """
    return _uniform(_mix((uniforms.double() * 2.0**53).to(torch.int64) + _signed(_GAMMA * time)))


class Streams(NamedTuple):
    """One random stream a row; immutable: drawing returns the streams that follow."""

    keys: Tensor
    """(rows,) int64."""
    counters: Tensor
    """(rows,) int64: how many numbers each row has drawn."""

    @classmethod
    def from_seed(cls, seed: int, rows: int, device: torch.device) -> "Streams":
        """Independent streams for rows 0..rows-1; row i's does not depend on how many rows there are."""
        root = _mix(torch.tensor([_signed(seed)], dtype=torch.int64) + _GAMMA)
        keys = _mix(root + _GAMMA * torch.arange(1, rows + 1, dtype=torch.int64))
        return cls(keys.to(device), torch.zeros(rows, dtype=torch.int64, device=device))

    def draw(self, count: int, mask: Tensor | None = None) -> tuple[Tensor, "Streams"]:
        """Draw count uniform numbers for each row.

        Args:
            count: numbers a row.
            mask: (rows,) bool: only these rows' streams move on; None means all.

        Returns:
            Uniforms (rows, count) float32 in [0, 1), and the streams afterwards.
        """
        offsets = torch.arange(count, dtype=torch.int64, device=self.keys.device)
        bits = _mix(self.keys[:, None] + _GAMMA * (self.counters[:, None] + offsets))
        uniforms = _uniform(bits)
        advance = count if mask is None else count * mask.to(torch.int64)
        return uniforms, Streams(self.keys, self.counters + advance)


def sample_categorical(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw one category for each position by inverting the distribution function.

    One uniform a draw, where Gumbel-max needs one for each category.

    Args:
        logits: (batch, categories, *positions), unnormalised log-probabilities.
        uniforms: (batch, *positions) float32 in [0, 1).
        temperature: divides the logits; 0 takes the most likely category.

    Returns:
        Categories (batch, *positions) int64.
    """
    if temperature == 0.0:
        return logits.argmax(dim=1)
    scaled = logits.float().movedim(1, -1) / temperature
    cumulative = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    threshold = uniforms.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
