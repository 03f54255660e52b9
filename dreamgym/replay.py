"""Real experience: a ring of one-frame records, and the batches that world models and dreams are made from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from dreamgym.errors import InvalidInputError, ReplayError
from dreamgym.json_files import fits
from dreamgym.shards import (
    INDEX_NAME,
    Arrays,
    Index,
    Shard,
    read_index,
    read_shard,
    read_visits,
    write_index,
    write_shard,
    write_visits,
)
from dreamgym.start_weights import StartWeights

Frames = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LONGEST_ELAPSED = 128
"""Steps since the last reward that are counted; where none is known, it counts as so long ago."""

_SHARD_RECORDS = 8192  # a shard is compressed in memory: 75 MB of 96 x 96 frames


class Windows(NamedTuple):
    """Sequences of consecutive records.

    Attributes:
        indices: int64 (batch, length), logical indices, all of them valid.
        mask: bool (batch, length), False for the records that belong to another episode than the window.
        weights: float32 (batch,), importance weights; see `Replay.sample_windows`.
    """

    indices: Indices
    mask: Flags
    weights: npt.NDArray[np.float32]


MOST_PHASE = 255
"""Largest phase, which is kept in a byte."""


class Replay:
    """A ring of records, one a step of the real game: the oldest are overwritten when it is full.

    A record is the frame o_t, the action a_t taken there, and what followed: raw reward, terminated, truncated, life
    lost; and whether o_t began an episode. Frames are kept once (96 x 96 bytes) and stacked when they are asked for.
    Indices are logical: 0 is the oldest record and ``len(replay) - 1`` the newest, wherever they lie in the ring.
    """

    def __init__(
        self,
        capacity: int,
        frame_shape: Sequence[int] = (96, 96),
        action_shape: Sequence[int] = (),
        action_dtype: npt.DTypeLike = np.int64,
    ) -> None:
        """Make an empty buffer.

        Args:
            capacity: most records held; 102,400 frames of 96 x 96 are 0.94 GB, taken as they are filled.
            frame_shape: (height, width) of a frame, pixels.
            action_shape: shape of an action: () for discrete, (n,) for n continuous controls.
            action_dtype: a numeric type: int64 for discrete, float32 for continuous actions.

        Raises:
            InvalidInputError: a capacity below 1, or a shape or type that cannot be.
        """
        if not fits(capacity, int):
            raise InvalidInputError(f"capacity: expected a whole number of records, got {capacity!r}.")
        self.capacity = capacity
        self.frame_shape = tuple(int(side) for side in frame_shape)
        self.action_shape = tuple(int(side) for side in action_shape)
        self.action_dtype: np.dtype[Any] = np.dtype(action_dtype)
        if self.capacity < 1:
            raise InvalidInputError(f"capacity: expected at least 1 record, got {capacity!r}.")
        if len(self.frame_shape) != 2 or min(self.frame_shape) < 1:
            raise InvalidInputError(f"frame_shape: expected (height, width), got {frame_shape!r}.")
        if self.action_dtype.kind not in "iuf":
            raise InvalidInputError(f"action_dtype: expected an integer or floating type, got {action_dtype!r}.")
        # Zeros that nobody has written take no memory: the system maps their pages at the first write.
        try:
            self._frames = np.zeros((self.capacity, *self.frame_shape), np.uint8)
            self._columns: Arrays = {
                "actions": np.zeros((self.capacity, *self.action_shape), self.action_dtype),
                "rewards": np.zeros(self.capacity, np.float32),
                "terminated": np.zeros(self.capacity, np.bool_),
                "truncated": np.zeros(self.capacity, np.bool_),
                "life_lost": np.zeros(self.capacity, np.bool_),
                "first": np.zeros(self.capacity, np.bool_),
                "phase": np.zeros(self.capacity, np.uint8),
            }
            self._episode_first = np.zeros(self.capacity, np.int64)
            self._starts = StartWeights(self.capacity)
        except (MemoryError, ValueError) as error:
            raise InvalidInputError(
                f"capacity: expected as many frames of {self.frame_shape} as there is memory for, got "
                f"{self.capacity:,}; take fewer."
            ) from error
        # Records are numbered from the first ever appended; record n lies in slot n % capacity.
        self._stop = 0
        self._size = 0
        self._folder: Path | None = None
        self._shards: tuple[Shard, ...] = ()

    def __len__(self) -> int:
        """The number of records held."""
        return self._size

    @property
    def appended(self) -> int:
        """The number of records ever appended, overwritten ones included."""
        return self._stop

    @property
    def visits(self) -> Indices:
        """How often each record was drawn as a window's start: int64 (len,), a copy; may be set, as when resuming."""
        return self._starts.visits[self._slots(np.arange(self._size))]

    @visits.setter
    def visits(self, counts: npt.ArrayLike) -> None:
        counts = np.asarray(counts)
        if counts.shape != (self._size,) or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise InvalidInputError(
                f"visits: expected {self._size} counts of at least 0, got {counts.dtype} {counts.shape}."
            )
        self._starts.set_visits(self._slots(np.arange(self._size)), counts.astype(np.int64))

    def append(
        self,
        frame: Frames,
        action: npt.ArrayLike,
        reward: float,
        terminated: bool,
        truncated: bool,
        life_lost: bool,
        first: bool,
        phase: int = 0,
    ) -> None:
        """Add a record.

        Args:
            frame: uint8 `frame_shape`, what was seen.
            action: `action_shape`, what was done then.
            reward: raw reward that followed.
            terminated: the episode ended there, in the game's own terms.
            truncated: the episode was cut there.
            life_lost: a life was lost there.
            first: the frame began an episode. An episode may be left without an end (a run that was killed), but one
                that has ended must be followed by a first record.
            phase: emulator frames that were waited before the episode's first, modulo those of a step.

        Raises:
            InvalidInputError: a frame or action of the wrong shape or type, a reward that is not finite, or a `first`
                that is missing.
        """
        frame = np.asarray(frame)
        if frame.shape != self.frame_shape or frame.dtype != np.uint8:
            raise InvalidInputError(f"frame: expected uint8 {self.frame_shape}, got {frame.dtype} {frame.shape}.")
        taken = np.asarray(action)
        if taken.shape != self.action_shape or not np.can_cast(taken.dtype, self.action_dtype, "same_kind"):
            raise InvalidInputError(
                f"action: expected {self.action_dtype} {self.action_shape}, got {taken.dtype} {taken.shape}."
            )
        if not np.isfinite(reward):
            raise InvalidInputError(f"reward: expected a finite number, got {reward!r}.")
        if not 0 <= phase <= MOST_PHASE:
            raise InvalidInputError(f"phase: expected 0 to {MOST_PHASE}, got {phase!r}.")
        previous = (self._stop - 1) % self.capacity
        ended = self._columns["terminated"][previous] or self._columns["truncated"][previous]
        if not first and (self._stop == 0 or ended):
            raise InvalidInputError("first: expected True for the first record and after the end of an episode.")
        slot = self._stop % self.capacity
        self._episode_first[slot] = self._stop if first else self._episode_first[previous]
        self._frames[slot] = frame
        values = (taken, reward, terminated, truncated, life_lost, first, phase)
        for column, value in zip(self._columns.values(), values, strict=True):
            column[slot] = value
        if self._size == self.capacity:
            self._starts.forget(slot)
        self._stop += 1
        self._size = min(self._size + 1, self.capacity)

    def frames_at(self, indices: npt.ArrayLike, stack: int = 1) -> Frames:
        """Stacked frames: uint8 (..., stack, height, width) for indices (...), the newest frame last.

        Where a stack reaches beyond the first frame of its episode (or the oldest one held), that frame is repeated.

        Raises:
            InvalidInputError: an index out of range, or a stack below 1.
        """
        if stack < 1:
            raise InvalidInputError(f"stack: expected at least 1, got {stack!r}.")
        chosen = self._checked(indices)
        if stack == 1:
            return self._frames[self._slots(chosen)][..., None, :, :]
        stacked = chosen[..., None] + np.arange(1 - stack, 1)
        return self._frames[self._slots(np.maximum(stacked, self._episode_start(chosen)[..., None]))]

    def actions_at(self, indices: npt.ArrayLike) -> npt.NDArray[Any]:
        """Actions taken: `action_dtype` (..., *action_shape)."""
        return self._column("actions", indices)

    def rewards_at(self, indices: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Raw rewards that followed: float32 (...)."""
        return cast(npt.NDArray[np.float32], self._column("rewards", indices))

    def terminated_at(self, indices: npt.ArrayLike) -> Flags:
        """Whether the episode ended there: bool (...)."""
        return cast(Flags, self._column("terminated", indices))

    def truncated_at(self, indices: npt.ArrayLike) -> Flags:
        """Whether the episode was cut there: bool (...)."""
        return cast(Flags, self._column("truncated", indices))

    def ends_at(self, indices: npt.ArrayLike) -> Flags:
        """Terminated or truncated: bool (...)."""
        return self.terminated_at(indices) | self.truncated_at(indices)

    def life_lost_at(self, indices: npt.ArrayLike) -> Flags:
        """Whether a life was lost there: bool (...)."""
        return cast(Flags, self._column("life_lost", indices))

    def phase_at(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Emulator frames waited before the episode's first, modulo those of a step: uint8 (...)."""
        return cast("npt.NDArray[np.uint8]", self._column("phase", indices))

    def first_at(self, indices: npt.ArrayLike) -> Flags:
        """Whether the frame began an episode: bool (...)."""
        return cast(Flags, self._column("first", indices))

    def elapsed_at(self, indices: npt.ArrayLike, longest: int = LONGEST_ELAPSED) -> Indices:
        """Steps from the last reward, or from the episode's start, to each record: int64 (...).

        A record that follows one with a reward has 0. Rewards count as the dynamics learn them: rounded, in [-1, 1].

        Args:
            indices: records.
            longest: how far to look back; where there is nothing so far among the records held, the answer is this.

        Raises:
            InvalidInputError: an index out of range, or ``longest`` below 1.
        """
        if longest < 1:
            raise InvalidInputError(f"longest: expected at least 1, got {longest}.")
        chosen = self._checked(indices)
        earlier = chosen[..., None] - np.arange(1, longest + 1)
        rewarded = np.abs(self.rewards_at(np.maximum(earlier, 0))) > 0.5
        start = self._episode_start(chosen)
        before = earlier < start[..., None]
        found = (rewarded & ~before) | (before & self.first_at(start)[..., None])
        return np.where(found.any(-1), found.argmax(-1), longest)

    def iter_episodes(self) -> list[tuple[int, int]]:
        """The episodes held, in order: half-open (start, stop) spans of indices; the last one may not have ended."""
        if not self._size:
            return []
        begins = self._episode_start(np.arange(self._size))
        starts = np.unique(begins).tolist()
        return list(zip(starts, [*starts[1:], self._size], strict=True))

    def background(self) -> Frames:
        """The median of up to 512 evenly spaced frames, pixel by pixel: uint8 (height, width).

        Raises:
            ReplayError: the buffer is empty.
        """
        self._require(1)
        count = min(512, self._size)
        chosen = np.linspace(0, self._size - 1, count).round().astype(np.int64)
        frames = self._frames[self._slots(chosen)]
        return np.partition(frames, count // 2, axis=0)[count // 2]

    def set_priority(self, indices: npt.ArrayLike, factor: npt.ArrayLike) -> None:
        """Draw windows that start at some records `factor` times as often as others; new records have a factor of 1.

        Priorities last until they are set again or the record is overwritten; they are not saved.

        Raises:
            InvalidInputError: an index out of range, or a factor that is not positive and finite.
        """
        chosen = self._checked(indices)
        factors = np.broadcast_to(np.asarray(factor, np.float64), chosen.shape)
        if not np.all(np.isfinite(factors) & (factors > 0)):
            raise InvalidInputError(f"factor: expected positive finite numbers, got {factor!r}.")
        self._starts.set_factors(self._slots(chosen).ravel(), factors.ravel())

    def prioritise_events(self, length: int, factor: float, shown: int = 0) -> None:
        """Draw windows in which something happens `factor` times as often as the others.

        Something happens in a window if one of its `length` records but the first `shown`, before its episode ends,
        has a reward other than zero, a termination, or a lost life (the end of an episode as far as fitting goes). All
        other priorities become 1. O(len); call it once before each fit.

        Raises:
            InvalidInputError: a length below 1, or a factor that is not positive and finite.
        """
        if length < 1:
            raise InvalidInputError(f"length: expected at least 1, got {length!r}.")
        if not (np.isfinite(factor) and factor > 0):
            raise InvalidInputError(f"factor: expected a positive finite number, got {factor!r}.")
        every = np.arange(self._size)
        event = (self.rewards_at(every) != 0) | self.terminated_at(every) | self.life_lost_at(every)
        upcoming = np.minimum.accumulate(np.where(event, every, self._size)[::-1])[::-1]
        upcoming = np.append(upcoming, np.full(shown, self._size))[shown:]
        same_episode = self._episode_start(np.minimum(upcoming, self._size - 1)) == self._episode_start(every)
        eventful = (upcoming < np.minimum(every + length, self._size)) & same_episode
        self._starts.set_all_factors(self._slots(every), np.where(eventful, float(factor), 1.0))

    def sample_windows(
        self,
        batch_size: int,
        length: int,
        rng: np.random.Generator,
        *,
        weights: Literal["uniform", "balanced"] = "uniform",
        tau: float = 20.0,
        prioritised: bool = True,
    ) -> Windows:
        """Draw windows of consecutive records, independently, with replacement, in O(batch (length + log capacity)).

        A window may start at any record with ``length - 1`` others after it. Its mask is True up to and including the
        last record of the episode it started in. Every draw counts as a visit to its start, whatever the weights.

        Args:
            batch_size: number of windows.
            length: records a window.
            rng: where the draws come from.
            weights: ``"uniform"``, or ``"balanced"``: starts in proportion to softmax(-visits / tau), which evens out
                how often old and new experience is seen (TWM, Robine et al. 2023, "Transformer-based World Models Are
                Happy with 100k Interactions", balanced sampling).
            tau: temperature of the balancing, in visits.
            prioritised: multiply the weights by the priorities of `set_priority` or `prioritise_events`.

        Returns:
            The windows. Their weights undo the priorities and those alone, since the balancing is meant to shift the
            distribution: in proportion to 1 / priority, with an expectation of 1 (1 / (n p) for uniform weights), so
            that a mean of weighted losses estimates what it would be without priorities.

        Raises:
            ReplayError: fewer records than `length`.
            InvalidInputError: another argument out of range.
        """
        if batch_size < 1 or length < 1:
            raise InvalidInputError(f"expected a batch_size and a length of at least 1, got {batch_size}, {length}.")
        if weights not in ("uniform", "balanced"):
            raise InvalidInputError(f"weights: expected 'uniform' or 'balanced', got {weights!r}.")
        if not (np.isfinite(tau) and tau > 0):
            raise InvalidInputError(f"tau: expected a positive finite number, got {tau!r}.")
        _check_generator(rng)
        self._require(length)
        slots, importance = self._starts.draw(
            self._ranges(self._size - length + 1),
            batch_size,
            rng,
            balanced=weights == "balanced",
            tau=float(tau),
            prioritised=prioritised,
        )
        starts = (slots - self._stop + self._size) % self.capacity
        indices = starts[:, None] + np.arange(length)
        episodes = self._episode_start(indices)
        return Windows(indices, episodes == episodes[:, :1], importance)

    def windows_from(self, starts: npt.ArrayLike, length: int) -> Windows:
        """Windows that begin at given records, masked as in `sample_windows`, with weights of 1 and no visit counted.

        Args:
            starts: (count,) indices of records with ``length - 1`` others after them.
            length: records a window.

        Raises:
            ReplayError: a window would reach beyond the newest record, or a start is no record.
            InvalidInputError: a length below 1.
        """
        if length < 1:
            raise InvalidInputError(f"length: expected at least 1, got {length}.")
        indices = self._checked(np.asarray(starts)[:, None] + np.arange(length))
        episodes = self._episode_start(indices)
        return Windows(indices, episodes == episodes[:, :1], np.ones(len(indices), dtype=np.float32))

    def sample_starts(
        self, count: int, context: int, rng: np.random.Generator, newest: int = 0, newest_share: float = 0.0
    ) -> Windows:
        """Draw records for dreams to start from, each with the records before it.

        Args:
            count: number of starts, drawn without replacement while there are as many records.
            context: records a start, itself included as the last one.
            rng: where the draws come from.
            newest: how many records, the last ones, ``newest_share`` is drawn from.
            newest_share: share of the starts that are drawn from them, at most all of these once; the others are drawn
                from all records, so that one may be in both parts.

        Returns:
            Windows (count, context) ending at the starts; where the context reaches beyond the beginning of the episode
            (or the oldest record held), the mask is False and the index that of the first record. The weights are 1.

        Raises:
            ReplayError: the buffer is empty.
            InvalidInputError: a count or context below 1, a share that is none, or fewer newest than none.
        """
        if count < 1 or context < 1:
            raise InvalidInputError(f"expected a count and a context of at least 1, got {count}, {context}.")
        if not 0 <= newest_share <= 1:
            raise InvalidInputError(f"newest_share: expected 0 to 1, got {newest_share}.")
        if newest < 0:
            raise InvalidInputError(f"newest: expected at least 0, got {newest}.")
        _check_generator(rng)
        self._require(1)
        newest = min(newest, self._size)
        from_newest = min(round(newest_share * count), newest)
        parts = [
            self._size - among + rng.choice(among, size=drawn, replace=drawn > among)
            for drawn, among in ((count - from_newest, self._size), (from_newest, newest))
            if drawn
        ]
        starts = np.concatenate(parts)
        indices = starts[:, None] + np.arange(1 - context, 1)
        begins = self._episode_start(starts)[:, None]
        return Windows(np.maximum(indices, begins), indices >= begins, np.ones(count, np.float32))

    def save(self, folder: str | Path) -> None:
        """Append the records that the folder does not hold yet, as new shards, and save the visits.

        A crash at any instant leaves the folder as it was before or as it is after. Shards whose records have all been
        overwritten in the ring are removed.

        Raises:
            ReplayError: the folder holds another buffer's records.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shards = self._shards if folder.resolve() == self._folder else ()
        if (folder / INDEX_NAME).exists() and read_index(folder).shards != shards:
            raise ReplayError(
                f"{folder} holds the records of another replay buffer: load that one to append to it, "
                "or save to an empty folder."
            )
        oldest = self._stop - self._size
        shards = tuple(shard for shard in shards if shard.stop > oldest)
        unsaved = shards[-1].stop if shards else oldest
        for first in range(unsaved, self._stop, _SHARD_RECORDS):
            slots = np.arange(first, min(first + _SHARD_RECORDS, self._stop)) % self.capacity
            columns = {name: column[slots] for name, column in self._columns.items()}
            shards = (*shards, write_shard(folder, first, self._frames[slots], columns))
        visits, visits_sha256 = write_visits(folder, self._stop, self.visits)
        layout = (self.capacity, self.frame_shape, self.action_shape, self.action_dtype.str)
        write_index(folder, Index(*layout, oldest, self._stop, visits, visits_sha256, shards))
        self._folder, self._shards = folder.resolve(), shards

    @classmethod
    def load(cls, folder: str | Path, capacity: int | None = None) -> "Replay":
        """Load what `save` wrote.

        Args:
            folder: the folder.
            capacity: most records held; by default that of the saved buffer. If smaller, the newest records are kept.

        Raises:
            ReplayError: no replay there, or a file of it is missing or damaged; the message names it.
        """
        folder = Path(folder)
        index = read_index(folder)
        size = index.capacity if capacity is None else capacity
        try:
            replay = cls(size, index.frame_shape, index.action_shape, np.dtype(index.action_dtype))
        except InvalidInputError as error:
            raise ReplayError(f"{folder / INDEX_NAME}: {error}") from error
        oldest = max(index.first, index.stop - replay.capacity)
        replay._stop, replay._size = index.stop, index.stop - oldest
        expected = oldest
        for shard in index.shards:
            if shard.stop <= oldest:
                continue
            if shard.first > expected:
                raise ReplayError(f"{folder / INDEX_NAME}: no shard holds the records {expected} to {shard.first}.")
            expected = shard.stop
            frames, columns = read_shard(folder, shard, replay.frame_shape)
            replay._restore(folder / shard.name, frames, columns, shard.first, max(shard.first, oldest))
        if expected != index.stop:
            raise ReplayError(f"{folder / INDEX_NAME}: no shard holds the records {expected} to {index.stop}.")
        every = np.arange(replay._size)
        numbers = oldest + every
        begins = replay.first_at(every) | (every == 0)
        replay._episode_first[replay._slots(every)] = np.maximum.accumulate(np.where(begins, numbers, 0))
        replay._starts.visits[replay._slots(every)] = read_visits(folder, index)[oldest - index.first :]
        replay._folder, replay._shards = folder.resolve(), index.shards
        return replay

    @classmethod
    def salvage(cls, folder: str | Path, capacity: int, stop: int) -> tuple["Replay", list[str]]:
        """Load what is whole of a folder that :meth:`load` refuses.

        Only whole episodes follow a gap: the rest of one that lost its beginning is left out, as its stacks of frames
        and its steps since a reward would be made up. Records get numbers above all that were given before, so that
        nobody takes them for others; nobody has visited them yet.

        Args:
            folder: the folder; it is not changed.
            capacity: most records held.
            stop: of the records held by the folder, how many of the oldest are wanted.

        Returns:
            The buffer, and what is wrong with which file, a sentence each.

        Raises:
            ReplayError: there is no index, or it is damaged: without it nothing can be told apart.
        """
        folder = Path(folder)
        index = read_index(folder)
        replay = cls(capacity, index.frame_shape, index.action_shape, np.dtype(index.action_dtype))
        replay._stop = index.stop
        wrong: list[str] = []
        expected, broken = index.first, True
        for shard in index.shards:
            if shard.first > expected:
                wrong.append(f"{folder / INDEX_NAME}: no shard holds the records {expected} to {shard.first}.")
                broken = True
            expected = shard.stop
            try:
                frames, columns = read_shard(folder, shard, replay.frame_shape)
                replay._check_columns(folder / shard.name, columns, len(frames))
            except ReplayError as error:
                wrong.append(str(error))
                broken = True
                continue
            for row in range(max(index.first - shard.first, 0), min(len(frames), index.first + stop - shard.first)):
                if broken and not columns["first"][row]:
                    continue
                broken = False
                replay.append(frames[row], *(columns[name][row] for name in replay._columns))
        try:
            read_visits(folder, index)
        except ReplayError as error:
            wrong.append(str(error))
        return replay, wrong

    def _restore(self, path: Path, frames: Frames, columns: Arrays, first: int, wanted: int) -> None:
        self._check_columns(path, columns, len(frames))
        slots = np.arange(wanted, first + len(frames)) % self.capacity
        self._frames[slots] = frames[wanted - first :]
        for name, column in self._columns.items():
            column[slots] = columns[name][wanted - first :]

    def _check_columns(self, path: Path, columns: Arrays, count: int) -> None:
        # The first shards had no phases.
        columns.setdefault("phase", np.zeros(count, np.uint8))
        for name, column in self._columns.items():
            values = columns.get(name)
            if values is None or values.shape != (count, *column.shape[1:]) or values.dtype != column.dtype:
                raise ReplayError(f"replay shard {path}: expected {name} {column.dtype} of {count} records.")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ReplayError(f"replay shard {path}: expected finite {name}. Restore it from a copy.")

    def _slots(self, indices: Indices) -> Indices:
        return (indices + (self._stop - self._size)) % self.capacity

    def _ranges(self, count: int) -> list[tuple[int, int]]:
        """The slots of the `count` oldest records, as ranges that do not cross the ring's seam."""
        start = (self._stop - self._size) % self.capacity
        stop = start + count
        if stop <= self.capacity:
            return [(start, stop)]
        return [(start, self.capacity), (0, stop - self.capacity)]

    def _episode_start(self, indices: Indices) -> Indices:
        """The index of the first record held of the episode that each record belongs to."""
        return np.maximum(self._episode_first[self._slots(indices)] - (self._stop - self._size), 0)

    def _column(self, name: str, indices: npt.ArrayLike) -> npt.NDArray[Any]:
        return self._columns[name][self._slots(self._checked(indices))]

    def _checked(self, indices: npt.ArrayLike) -> Indices:
        chosen = np.asarray(indices)
        if chosen.size == 0:
            return chosen.astype(np.int64)
        if chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= self._size:
            raise InvalidInputError(f"indices: expected integers in [0, {self._size}), got {indices!r}.")
        return chosen.astype(np.int64, copy=False)

    def _require(self, records: int) -> None:
        if self._size < records:
            raise ReplayError(f"expected a replay buffer of at least {records} records, it has {self._size}.")


def _check_generator(rng: Any) -> None:
    if not isinstance(rng, np.random.Generator):
        raise InvalidInputError(f"rng: expected a generator, such as np.random.default_rng(0), got {rng!r}.")
