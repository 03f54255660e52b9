"""Episodes of replay buffers: joined into one buffer, and split into what is fitted to and what is held out."""

from collections.abc import Sequence

import numpy as np

from dreamgym.errors import ReplayError
from dreamgym.replay import Replay

Span = tuple[Replay, int, int]
"""An episode: its buffer, and the indices of its first record and of the one after its last."""


def join_episodes(spans: Sequence[Span], capacity: int) -> Replay:
    """Episodes of several buffers in one, copied.

    Args:
        spans: the episodes, in the order they shall have.
        capacity: most records held; where they are too many, the newest are kept.

    Returns:
        A buffer like the first episode's; an empty one of default frames where there are no episodes.
    """
    if not spans:
        return Replay(capacity)
    like = spans[0][0]
    joined = Replay(capacity, like.frame_shape, like.action_shape, like.action_dtype)
    for part, start, stop in spans:
        records = np.arange(start, stop)
        columns = (
            part.frames_at(records)[:, 0],
            part.actions_at(records),
            part.rewards_at(records).tolist(),
            part.terminated_at(records).tolist(),
            part.truncated_at(records).tolist(),
            part.life_lost_at(records).tolist(),
            (records == start).tolist(),
            part.phase_at(records).tolist(),
        )
        for record in zip(*columns, strict=True):
            joined.append(*record)
    return joined


def split_episodes(
    replay: Replay, rng: np.random.Generator, *, share: float = 0.1, least: int = 8
) -> tuple[Replay, Replay]:
    """Split real experience by whole episodes: what a world model is fitted to, and what it is measured on.

    The held-out episodes are spread over the buffer, one drawn from each of as many stretches of equally many episodes,
    so that early, clumsy play and late, long rallies are both among them.

    Args:
        replay: what to split; it stays as it is.
        rng: draws the held-out episodes.
        share: the fraction of the episodes that is held out, rounded to the nearest number.
        least: at least so many are.

    Returns:
        Two buffers of copied records, each in the old order: to fit to, and held out.

    Raises:
        ReplayError: too few episodes to hold out so many and fit to at least one.
    """
    spans = [(replay, *span) for span in replay.iter_episodes()]
    count = max(least, round(share * len(spans)))
    if not 0 < count < len(spans):
        raise ReplayError(f"replay: expected more than {count} episodes to hold {count} out, got {len(spans)}.")
    held_out = {int(rng.choice(stretch)) for stretch in np.array_split(np.arange(len(spans)), count)}
    parts = ([span for index, span in enumerate(spans) if (index in held_out) == kept] for kept in (False, True))
    fitted, measured = (join_episodes(part, sum(stop - start for _, start, stop in part)) for part in parts)
    return fitted, measured
