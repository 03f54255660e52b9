"""Windows that surprise the dynamics, or show what is rare, are drawn more often.

Prioritised replay (Schaul et al. 2016), for a world model (Kauvar et al. 2023, "Curious Replay"). What a young policy
hardly ever does, returning a ball, is a small share of its experience and stays badly fitted long after the rest is
learned; a policy that trains in such a dream never finds out that it pays.
"""

import numpy as np
import numpy.typing as npt

from dreamgym.errors import InvalidInputError, ReplayError
from dreamgym.replay import LONGEST_ELAPSED, Flags, Replay, Windows

Losses = npt.NDArray[np.float32]

_RENEWED = 102_400
"""Records whose weights are computed anew for every draw; of so many times more it is done every so many draws.

Beside a million others the losses of a few batches change nothing that could be seen, and the weights of all of them
would take a tenth of an update's time.
"""


class SurpriseWindows:
    """Draws windows in proportion to the loss that their steps had when they were last seen.

    To shift the fit of the latents towards what is not yet learned is the purpose, and a limit keeps what cannot be
    learned from taking over. What is told apart by how often it comes, a reward in a state that hardly ever brings one,
    must not be shifted: for that there are importance weights (Schaul et al. 2016, Sect. 3.4).

    Args:
        limit: a window's loss counts as at most so many times the mean of all, and as at least 1 / limit of it.
        power: of a record's loss; windows are drawn in proportion to the sum of their records'.
        settling: steps after a reward, or an episode's start, in which a record counts as an average one of the others
            at most. Then a game shows a score or sets its scene up anew: rarely foretold, and no matter for what is
            done next. So does its rarity.
        rare_share: share of the windows that are drawn by their records' rarity instead (:meth:`rate`).
        even_share: share of the windows that is drawn evenly instead. A defensive mixture (Hesterberg 1995): none is
            drawn so seldom that its weight would exceed 1 / ``even_share``.
    """

    def __init__(
        self,
        limit: float,
        power: float = 1.0,
        settling: int = 0,
        rare_share: float = 0.0,
        even_share: float = 0.0,
    ) -> None:
        """Begin with no loss known."""
        if not limit >= 1 or not power > 0:
            raise InvalidInputError(f"limit, power: expected at least 1 and more than 0, got {limit!r} and {power!r}.")
        if not (rare_share >= 0 and even_share >= 0 and rare_share + even_share <= 1):
            raise InvalidInputError(
                "rare_share, even_share: expected at least 0 each and at most 1 together, "
                f"got {rare_share!r} and {even_share!r}."
            )
        if not 0 <= settling <= LONGEST_ELAPSED:
            raise InvalidInputError(f"settling: expected 0 to {LONGEST_ELAPSED}, got {settling!r}.")
        self._limit, self._power, self._settling = limit, power, settling
        self._rare_share, self._even_share = rare_share, even_share
        self._losses: Losses = np.zeros(0, np.float32)
        self._settles: Flags = np.zeros(0, np.bool_)
        self._rarity: npt.NDArray[np.float64] | None = None
        self._first = 0
        self._replay: Replay | None = None
        self._forget_weights()

    @property
    def first(self) -> int:
        """The number of the first record that a loss is kept of, counted from the first ever appended."""
        return self._first

    @property
    def losses(self) -> Losses:
        """(records,) float32, nats: how badly each record's latent was predicted from those before it; NaN: unknown."""
        return self._losses

    def restore(self, losses: Losses, first: int) -> None:
        """Go on with losses that were saved, of the next replay that is drawn from.

        Args:
            losses: what :attr:`losses` was.
            first: what :attr:`first` was.

        Raises:
            InvalidInputError: not one row of numbers.
        """
        values = np.array(losses, dtype=np.float32)
        if values.ndim != 1:
            raise InvalidInputError(f"losses: expected (records,), got {values.shape}.")
        self._losses, self._first, self._replay = values, first, None
        self._forget_weights()

    def forget(self) -> None:
        """The codec has changed, and with it every loss."""
        self._losses = np.zeros(0, np.float32)
        self._forget_weights()

    def follow(self, replay: Replay) -> int:
        """Make room for a replay's records; what is known of another one is forgotten.

        Returns:
            The oldest record for which there was no room before: all from there on are new.
        """
        oldest = replay.appended - len(replay)
        same = self._replay is None or self._replay is replay
        if not same or oldest < self._first or self._first + len(self._losses) > replay.appended:
            self.forget()
        self._losses = self._losses[max(0, oldest - self._first) :]
        self._first, self._replay, self._rarity = oldest, replay, None
        self._forget_weights()
        first = len(self._losses)
        self._losses = np.concatenate([self._losses, np.full(len(replay) - first, np.nan, np.float32)])
        self._settles = np.zeros(len(replay), np.bool_)
        if self._settling:
            self._settles = replay.elapsed_at(np.arange(len(replay)), self._settling) < self._settling
        return first

    def rate(self, rarity: npt.NDArray[np.float64]) -> None:
        """Say how rare what each record shows is: after :meth:`follow`, which forgets it.

        Args:
            rarity: (records,), at least 0.

        Raises:
            InvalidInputError: not one number for each record.
        """
        if rarity.shape != self._losses.shape:
            raise InvalidInputError(f"rarity: expected ({len(self._losses)},), got {rarity.shape}.")
        self._rarity = rarity
        self._forget_weights()

    def update(self, windows: Windows, losses: Losses) -> None:
        """Remember losses.

        Args:
            windows: (batch, time + 1) records.
            losses: (batch, time), nats, of all records but each window's first; those outside its episode and NaNs are
                ignored.
        """
        # What is not in the window's episode cannot be predicted from it.
        known = windows.mask[:, 1:] & ~np.isnan(losses)
        self._losses[windows.indices[:, 1:][known]] = losses[known]

    def draw(self, replay: Replay, batch_size: int, length: int, rng: np.random.Generator, shown: int = 0) -> Windows:
        """Draw windows of consecutive records, independently, with replacement, in O(len(replay)).

        Args:
            replay: given to :meth:`follow` before.
            batch_size: number of windows.
            length: records a window, at least 2.
            rng: where the draws come from.
            shown: records after a window's first that are no targets either.

        Returns:
            Windows, weighted so that the weighted mean is that of windows drawn evenly. A record whose loss is not
            known counts as an average one.

        Raises:
            ReplayError: fewer records than ``length``.
            InvalidInputError: some are to be drawn by their rarity, which was not said.
        """
        if len(replay) < length:
            raise ReplayError(f"expected a replay buffer of at least {length} records, it has {len(replay)}.")
        if self._weights is None or self._drawn_for != (length, shown) or self._draws_left == 0:
            self._weights, self._drawn_for = self._weigh(length, shown), (length, shown)
            self._draws_left = max(1, len(replay) // _RENEWED)
        self._draws_left -= 1
        weights, ends = self._weights
        starts = np.searchsorted(ends, rng.random(batch_size) * ends[-1], side="right")
        starts = np.minimum(starts, len(weights) - 1)
        even = (ends[-1] / len(ends) / weights[starts]).astype(np.float32)
        return replay.windows_from(starts, length)._replace(weights=even)

    def _forget_weights(self) -> None:
        """Compute the weights of windows anew before the next draw."""
        self._weights: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
        self._drawn_for, self._draws_left = (0, 0), 0

    def _weigh(self, length: int, shown: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """What windows are drawn in proportion to, by all there is to draw them by, and its sums up to each."""
        losses = self._losses.astype(np.float64) ** self._power
        weights = (1 - self._rare_share - self._even_share) * self._window_weights(losses, length, shown)
        weights += self._even_share
        if self._rare_share:
            if self._rarity is None:
                raise InvalidInputError("rare_share: the records are not rated; call rate() after follow().")
            weights += self._rare_share * self._window_weights(self._rarity, length, shown)
        return weights, np.cumsum(weights)

    def _window_weights(self, values: npt.NDArray[np.float64], length: int, shown: int) -> npt.NDArray[np.float64]:
        """What windows are drawn in proportion to, with mean 1, from what their records count, NaN where unknown."""
        known = ~np.isnan(values)
        counted = known & ~self._settles
        average = values[counted if counted.any() else known].mean() if known.any() else 1.0
        values = np.where(known, values, average)
        values[self._settles] = values[self._settles].clip(max=average)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        # A window's first record is no target.
        weights = sums[length:] - sums[1 + shown : len(sums) - length + 1 + shown]
        mean = weights.mean()
        if not mean > 0:
            return np.ones_like(weights)
        weights = np.clip(weights, mean / self._limit, mean * self._limit)
        return weights / weights.mean()
