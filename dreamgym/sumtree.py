"""A binary tree of sums: draws from a large set of weights, and changes some of them, in logarithmic time."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


class SumTree:
    """Non-negative weights of `size` slots under a binary tree in which each node holds the sum of its two children.

    Drawing a batch and setting a batch of weights are vectorised over the batch and take one step a level: the cost is
    O(batch log size). Sums are recomputed from the children, never adjusted by differences, so that errors cannot grow.
    The structure is that of prioritised replay (Schaul et al. 2016, App. B.2.1), with draws from any range of slots.
    """

    def __init__(self, weights: Weights) -> None:
        """Build the tree in O(size) from one weight a slot, float64 (size,)."""
        self.size = len(weights)
        self.depth = max(self.size - 1, 0).bit_length()
        self._leaves = 1 << self.depth
        self._nodes = np.zeros(2 * self._leaves)
        self._nodes[self._leaves : self._leaves + self.size] = weights
        for level in range(self.depth - 1, -1, -1):
            first = 1 << level
            children = self._nodes[2 * first : 4 * first]
            self._nodes[first : 2 * first] = children[::2] + children[1::2]

    def get(self, slots: Indices) -> Weights:
        """The weights of some slots."""
        return self._nodes[self._leaves + slots]

    def set(self, slots: Indices, weights: Weights | float) -> None:
        """Set the weights of some slots; a slot named twice takes the last of its weights."""
        nodes = self._leaves + slots
        self._nodes[nodes] = weights
        for _ in range(self.depth):
            nodes = nodes >> 1
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def total(self, ranges: list[tuple[int, int]]) -> float:
        """The sum of the weights in half-open ranges of slots."""
        return float(self._nodes[self._cover(ranges)].sum())

    def draw(self, ranges: list[tuple[int, int]], uniforms: Weights) -> Indices:
        """Draw slots of half-open ranges with probability proportional to their weights.

        Args:
            ranges: disjoint ranges that hold a positive weight between them.
            uniforms: float64 (batch,) in [0, 1): one draw each.

        Returns:
            Slots int64 (batch,), each with a positive weight.
        """
        cover = self._cover(ranges)
        cover = cover[self._nodes[cover] > 0]
        sums = np.cumsum(self._nodes[cover])
        targets = uniforms * sums[-1]
        chosen = np.minimum(np.searchsorted(sums, targets, side="right"), len(cover) - 1)
        targets = targets - np.where(chosen > 0, sums[chosen - 1], 0.0)
        nodes = cover[chosen]
        for _ in range(self.depth):
            inner = nodes < self._leaves
            # A leaf stays where it is; clipping keeps its unused children inside the array.
            left = np.where(inner, 2 * nodes, nodes)
            left_sum, right_sum = self._nodes[left], self._nodes[np.where(inner, left + 1, 0)]
            # Rounding can leave a target at or beyond the end of its node: never walk into an empty half.
            right = inner & (right_sum > 0) & ((targets >= left_sum) | (left_sum <= 0))
            targets = np.where(right, targets - left_sum, targets)
            nodes = np.where(right, left + 1, left)
        return nodes - self._leaves

    def _cover(self, ranges: list[tuple[int, int]]) -> Indices:
        """The fewest nodes that together hold exactly the ranges: at most two a level and range."""
        cover: list[int] = []
        for first, stop in ranges:
            low, high = first + self._leaves, stop + self._leaves
            while low < high:
                if low & 1:
                    cover.append(low)
                    low += 1
                if high & 1:
                    high -= 1
                    cover.append(high)
                low, high = low >> 1, high >> 1
        return np.array(cover, dtype=np.int64)
