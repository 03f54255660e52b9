"""The latents of real experience, each frame encoded once."""

import numpy as np
import numpy.typing as npt
import torch

from dreamgym.replay import Replay
from dreamgym.shifts import shift_rows
from dreamgym.world_model import WorldModel


def encode_replay(
    world_model: WorldModel, replay: Replay, chunk: int = 512, *, first: int = 0, rows: int = 0
) -> npt.NDArray[np.uint8]:
    """Encode every record once.

    Args:
        world_model: whose codec.
        replay: n records.
        chunk: frames encoded at once; always as many, so that a record's latent does not depend on what is beside it.
        first: the record to begin with.
        rows: by which the frames are moved down before (:mod:`dreamgym.shifts`).

    Returns:
        (n - first, height, width) uint8, aligned with the replay's indices.
    """
    parts: list[npt.NDArray[np.uint8]] = []
    for start in range(first, len(replay), chunk):
        indices = np.minimum(np.arange(start, start + chunk), len(replay) - 1)
        frames = torch.as_tensor(replay.frames_at(indices, world_model.frame_stack))
        if rows:
            frames = shift_rows(frames, torch.full((len(frames),), rows))
        latents = world_model.encode(frames, chunk)
        parts.append(latents[: len(replay) - start].to(torch.uint8).cpu().numpy())
    return np.concatenate(parts)


class LatentCache:
    """The latents of a replay that grows, each record encoded once for as long as the codec stays as it is.

    Args:
        world_model: whose codec.
        rows: by which the frames are moved down before they are encoded.
    """

    def __init__(self, world_model: WorldModel, rows: int = 0) -> None:
        """Begin with none."""
        self._world_model = world_model
        self._rows = rows
        self._known: npt.NDArray[np.uint8] | None = None
        self._replay: Replay | None = None

    def forget(self) -> None:
        """The codec has changed, or the weights were loaded anew."""
        self._known = None

    def of(self, replay: Replay) -> npt.NDArray[np.uint8]:
        """Latents of all records, (len(replay), height, width) uint8."""
        # Once the oldest records are dropped, indices no longer mean the same records.
        grown = replay is self._replay and replay.appended == len(replay)
        self._replay = replay
        if self._known is None or not grown:
            self._known = encode_replay(self._world_model, replay, rows=self._rows)
        elif len(self._known) < len(replay):
            new = encode_replay(self._world_model, replay, first=len(self._known), rows=self._rows)
            self._known = np.concatenate([self._known, new])
        return self._known
