"""How rare what a record shows is: every kind of change counts the same, however often it comes.

Most of what changes from one latent to the next is the same few things, a ball that flies on and a paddle that moves. A
ball that touches a paddle is seldom, and what cells then show is seldom, too: one code becomes another that it hardly
ever becomes. Class-balanced sampling (Kang et al. 2020, "Decoupling representation and classifier", Sect. 3) with
those pairs of codes as classes shows both equally often, and it needs no loss, so it can do so from the first update.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dreamgym.errors import InvalidInputError

Indices = npt.NDArray[np.int64]

_AT_ONCE = 4_096
"""Records whose pairs of codes are held in memory together."""


def change_rarity(latents: npt.NDArray[np.uint8], first: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Each record's share of the kinds of change: a kind is a pair of codes, what a cell showed and what it shows next.

    All kinds get the same, evenly divided among the cells and records that show them.

    Args:
        latents: (records, height, width) uint8, in the order in which they came.
        first: (records,) bool, which begin an episode: nothing changes on the way there.

    Returns:
        (records,) with mean 1; all 1 where nothing ever changes.

    Raises:
        InvalidInputError: not one flag a latent.
    """
    if latents.ndim != 3 or first.shape != latents.shape[:1]:
        raise InvalidInputError(
            f"latents, first: expected (records, height, width) and (records,), got {latents.shape} and {first.shape}."
        )
    codes = 1 + int(latents.max(initial=0))
    counts = np.zeros(codes**2, np.int64)
    for _, kinds in _changes(latents, first, codes):
        counts += np.bincount(kinds, minlength=len(counts))
    shares = np.zeros(len(latents))
    each = 1 / np.maximum(counts, 1)
    for records, kinds in _changes(latents, first, codes):
        shares += np.bincount(records, each[kinds], minlength=len(shares))
    mean = shares.mean() if len(shares) else 0.0
    return shares / mean if mean > 0 else np.ones(len(latents))


def _changes(
    latents: npt.NDArray[np.uint8], first: npt.NDArray[np.bool_], codes: int
) -> Iterator[tuple[Indices, Indices]]:
    """Record and kind of every cell that changes, some records at a time."""
    for begin in range(1, len(latents), _AT_ONCE):
        now = latents[begin : begin + _AT_ONCE]
        before = latents[begin - 1 : begin - 1 + len(now)]
        places = ((now != before) & ~first[begin : begin + len(now), None, None]).nonzero()
        yield begin + places[0], before[places].astype(np.int64) * codes + now[places]
