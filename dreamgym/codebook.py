"""The codebook for people: how often each code is used in the real game, and what it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from dreamgym.replay import Replay
    from dreamgym.world_model import WorldModel

MOST_FRAMES = 2_000
"""Real frames on which use is counted, at most, evenly spaced over the experience."""


class CodebookUse(NamedTuple):
    """What the codes are used for.

    Attributes:
        shares: of all cells of the frames, by code, (codes,); their sum is 1.
        pictures: what each draws, uint8 (codes, cell's height, cell's width).
        frames: real frames that were looked at.
    """

    shares: npt.NDArray[np.float64]
    pictures: npt.NDArray[np.uint8]
    frames: int

    @property
    def used(self) -> int:
        """Codes that were seen at all."""
        return int((self.shares > 0).sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy of the shares: how many equally common codes would be as diverse."""
        shares = self.shares[self.shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))


def codebook_use(model: WorldModel, replay: Replay) -> CodebookUse:
    """Count and draw the codes.

    A code is drawn where it is seen most often, among what the other cells show most often: a decoder that sees beside
    the cell then shows it in its usual place. One that was never seen is drawn in the middle.

    Args:
        model: whose latents are maps of codes; of stacked frames the newest is drawn.
        replay: real experience with at least one record.
    """
    records = np.unique(np.linspace(0, len(replay) - 1, min(MOST_FRAMES, len(replay))).astype(np.int64))
    latents = model.encode(replay.frames_at(records, model.frame_stack)).flatten(1).cpu()
    codes, cells = model.codec.num_codes, latents.shape[1]
    pairs = latents + codes * torch.arange(cells)
    counts = torch.bincount(pairs.flatten(), minlength=codes * cells).reshape(cells, codes)
    shares = counts.sum(0).double() / counts.sum()
    usual, places = counts.argmax(1), counts.argmax(0)
    rows, columns = model.codec.latent_shape
    places[counts.sum(0) == 0] = rows // 2 * columns + columns // 2
    shown = usual.repeat(codes, 1)
    shown[torch.arange(codes), places] = torch.arange(codes)
    frames = model.decode(shown.reshape(codes, rows, columns).to(model.device))[:, -1].cpu().numpy()
    height, width = frames.shape[1] // rows, frames.shape[2] // columns
    if model.config.codec.aligned:
        # Its grid lies elsewhere on the screen, whose edges meet.
        frames = np.roll(frames, model.codec.offset.clamp(min=0).tolist(), axis=(1, 2))
    pictures = [_cell(frame, int(place), columns, height, width) for frame, place in zip(frames, places, strict=True)]
    return CodebookUse(shares.numpy(), np.stack(pictures), len(records))


def _cell(frame: npt.NDArray[np.uint8], place: int, columns: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    top, left = place // columns * height, place % columns * width
    return frame[top : top + height, left : left + width]
