"""How likely each record of the replay buffer is to start a window: visits, priorities, and draws by them."""

import numpy as np
import numpy.typing as npt

from dreamgym.sumtree import SumTree

Indices = npt.NDArray[np.int64]
Ranges = list[tuple[int, int]]

_MAX_EXPONENT = 600.0  # exp(+-600) times any number of records is still an ordinary float64
_SMALLEST_TOTAL = 1e-100


class StartWeights:
    """Visits and priority factors of the slots of a ring, and weighted draws of slots in O(batch log capacity).

    A sum tree is built, in O(capacity), the first time a kind of draw is asked for; draws and changes then update it.
    It is built again when `tau` changes and when all visits have grown so far that softmax(-visits / tau) needs a new
    reference, which happens once in thousands of visits to every record.
    """

    def __init__(self, capacity: int) -> None:
        """Start with no visits and a factor of one everywhere."""
        self.visits: Indices = np.zeros(capacity, np.int64)
        self._factors = np.ones(capacity)
        self._has_factors = False
        self._trees: dict[tuple[bool, bool], SumTree] = {}  # (balanced, prioritised) -> weights
        self._tau = 0.0
        self._reference = 0.0
        self._outdated: list[int] = []

    def forget(self, slot: int) -> None:
        """A new record takes the slot: no visits, factor one."""
        self.visits[slot] = 0
        self._factors[slot] = 1.0
        if self._trees:
            self._outdated.append(slot)

    def set_visits(self, slots: Indices, counts: Indices) -> None:
        """Set the visits of some slots; O(slots log capacity)."""
        self.visits[slots] = counts
        self._update(slots)

    def set_factors(self, slots: Indices, factors: npt.NDArray[np.float64] | float) -> None:
        """Set the priority factors of some slots; O(slots log capacity) plus one pass over the factors."""
        self._factors[slots] = factors
        self._has_factors = bool(np.any(self._factors != 1.0))
        self._update(slots)

    def set_all_factors(self, slots: Indices, factors: npt.NDArray[np.float64]) -> None:
        """Set the factors of some slots and reset all others to one; O(capacity)."""
        self._factors[:] = 1.0
        self._factors[slots] = factors
        self._has_factors = bool(np.any(factors != 1.0))
        self._trees = {kind: tree for kind, tree in self._trees.items() if not kind[1]}

    def draw(
        self, ranges: Ranges, count: int, rng: np.random.Generator, *, balanced: bool, tau: float, prioritised: bool
    ) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Draw slots from ranges, with replacement, and count the visits.

        Args:
            ranges: half-open ranges of slots, at least one of them not empty.
            count: number of draws.
            rng: where the draws come from.
            balanced: weigh a slot by softmax(-visits / tau).
            tau: temperature of the balancing, in visits.
            prioritised: multiply a slot's weight by its factor.

        Returns:
            Slots int64 (count,) and importance weights float32 (count,) that undo the factors, with an expectation of
            one.
        """
        prioritised = prioritised and self._has_factors
        records = sum(stop - start for start, stop in ranges)
        plain_total = float(records)
        if balanced:
            plain_total = self._balanced_total(ranges, tau)
        if balanced or prioritised:
            tree = self._tree(balanced, prioritised)
            slots = tree.draw(ranges, rng.random(count))
        else:
            tree = None
            positions = rng.integers(records, size=count)
            offsets = np.cumsum([0] + [stop - start for start, stop in ranges])
            which = np.searchsorted(offsets, positions, side="right") - 1
            slots = np.array([start for start, _ in ranges], np.int64)[which] + positions - offsets[which]
        importance = np.ones(count, np.float32)
        if tree is not None and prioritised:
            importance = (tree.total(ranges) / plain_total / self._factors[slots]).astype(np.float32)
        np.add.at(self.visits, slots, 1)
        self._update(slots)
        return slots, importance

    def _balanced_total(self, ranges: Ranges, tau: float) -> float:
        if tau != self._tau:
            self._tau = tau
            self._rebase(0.0)
        total = self._tree(True, False).total(ranges)
        if total < _SMALLEST_TOTAL:
            # softmax is unchanged by a shift of its argument: measure from the least visited record.
            self._rebase(float(min(self.visits[start:stop].min() for start, stop in ranges)))
            total = self._tree(True, False).total(ranges)
        return total

    def _rebase(self, reference: float) -> None:
        self._reference = reference
        self._trees = {kind: tree for kind, tree in self._trees.items() if not kind[0]}

    def _tree(self, balanced: bool, prioritised: bool) -> SumTree:
        if self._outdated:
            outdated, self._outdated = np.array(self._outdated, np.int64), []
            self._update(outdated)
        kind = (balanced, prioritised)
        if kind not in self._trees:
            self._trees[kind] = SumTree(self._weights(np.arange(len(self.visits)), balanced, prioritised))
        return self._trees[kind]

    def _update(self, slots: Indices) -> None:
        for (balanced, prioritised), tree in self._trees.items():
            tree.set(slots, self._weights(slots, balanced, prioritised))

    def _weights(self, slots: Indices, balanced: bool, prioritised: bool) -> npt.NDArray[np.float64]:
        weights = np.ones(len(slots))
        if balanced:
            exponents = (self._reference - self.visits[slots]) / self._tau
            weights = np.exp(np.clip(exponents, -_MAX_EXPONENT, _MAX_EXPONENT))
        return weights * self._factors[slots] if prioritised else weights
