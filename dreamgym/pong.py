"""Is the ball in the dream? A measurement that only makes sense for Pong.

A reconstruction can be close to the frame in every average and still lack the one pixel that decides the game. Here the
ball is looked for in the frame and in its reconstruction, in the same way and in the whole field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dreamgym.errors import InvalidInputError

if TYPE_CHECKING:
    from dreamgym.replay import Replay
    from dreamgym.world_model import WorldModel

FIELDS = {(96, 96): (slice(16, 88), slice(12, 84)), (112, 80): (slice(17, 97), slice(11, 69))}
"""Where a ball can be in frames as :func:`dreamgym.real.make_game_env` shows them at these sizes: the rows between the
two walls (the score is above them), and the columns strictly between the two paddles."""

MIN_BRIGHTNESS = 50
"""A real ball stands out from the field by 50 to 149 of 255: it is a pixel or two in size and may straddle four."""

MAX_SIZE = 16
"""Pixels that a ball may light up. More than that is a screen that the game shows between two matches."""

NOISE = 10
"""What stands out from the background by no more is no part of a ball."""

TOLERANCE = 2.5
"""Pixels by which the reconstructed ball may be off."""


def find_spots(
    frames: npt.NDArray[np.uint8], background: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The brightest spot of every frame that is not background, anywhere between the walls and the paddles.

    Args:
        frames: uint8 (count, height, width), of a size in :data:`FIELDS`.
        background: uint8 (height, width), Pong without ball and paddles.

    Returns:
        The spots' positions, float64 (count, 2): row and column in pixels, the centre of mass of the 5 x 5 pixels
        around the brightest one; and how far that pixel stands out, float64 (count,) in 0..255.

    Raises:
        InvalidInputError: frames or background of another shape.
    """
    if frames.ndim != 3 or frames.shape[1:] not in FIELDS or background.shape != frames.shape[1:]:
        raise InvalidInputError(
            f"frames, background: expected (count, 96, 96) and (96, 96), or 112 x 80 pixels each, got {frames.shape} "
            f"and {background.shape}."
        )
    rows_shown, columns_shown = FIELDS[background.shape]
    off = _off_background(frames, background)
    brightest = off.reshape(len(off), -1).argmax(1)
    rows, columns = np.unravel_index(brightest, off.shape[1:])
    around = np.arange(-2, 3)
    near_rows, near_columns = rows[:, None] + around, columns[:, None] + around
    padded = np.pad(off, ((0, 0), (2, 2), (2, 2)))
    mass = padded[np.arange(len(off))[:, None, None], near_rows[:, :, None] + 2, near_columns[:, None, :] + 2]
    total = np.maximum(mass.sum((1, 2)), 1e-9)
    position = np.stack(
        [
            (mass.sum(2) * near_rows).sum(1) / total + rows_shown.start,
            (mass.sum(1) * near_columns).sum(1) / total + columns_shown.start,
        ],
        axis=1,
    )
    return position, off.reshape(len(off), -1).max(1)


def _off_background(frames: npt.NDArray[np.uint8], background: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """How much brighter than the background the field is."""
    difference = frames.astype(np.float64) - background
    rows, columns = FIELDS[background.shape]
    # A decoder is never quite black beside the ball.
    found = np.maximum(difference[:, rows, columns], 0)
    return np.where(found > NOISE, found, 0)


def shows_ball(frames: npt.NDArray[np.uint8], background: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether a real frame shows a ball in the field: one small bright spot and nothing else.

    Args:
        frames: uint8 (count, height, width), real ones, of a size in :data:`FIELDS`.
        background: uint8 (height, width).

    Returns:
        bool (count,).
    """
    off = _off_background(frames, background)
    return (off.max((1, 2)) >= MIN_BRIGHTNESS) & ((off > 0).sum((1, 2)) <= MAX_SIZE)


def ball_located(
    world_model: WorldModel,
    frames: npt.NDArray[np.uint8],
    background: npt.NDArray[np.uint8] | None = None,
) -> float:
    """How often the ball is where it belongs after a frame was encoded and decoded.

    Args:
        world_model: any codec of Pong at a size in :data:`FIELDS`.
        frames: held-out real frames as the codec takes them, uint8 (count, stack, height, width), the newest last.
        background: uint8 (height, width), Pong without ball and paddles; by default the median of the newest frames,
            for which they should come from more than one moment of a match.

    Returns:
        The fraction, in [0, 1], of the frames that show a ball in which the brightest spot of the reconstruction, over
        the whole field, lies within :data:`TOLERANCE` pixels of it.

    Raises:
        InvalidInputError: frames of another shape, or none of them shows a ball.
    """
    if frames.ndim != 4 or frames.shape[2:] not in FIELDS:
        raise InvalidInputError(f"frames: expected (count, stack, 96, 96) or (..., 112, 80), got {frames.shape}.")
    newest = frames[:, -1]
    field = np.median(newest, axis=0).astype(np.uint8) if background is None else background
    shown = np.flatnonzero(shows_ball(newest, field))
    if not len(shown):
        raise InvalidInputError(f"frames: expected some that show a ball, got {len(frames)} without one.")
    located = 0
    for start in range(0, len(shown), 256):
        chunk = shown[start : start + 256]
        decoded = world_model.decode(world_model.encode(frames[chunk]))[:, -1].cpu().numpy()
        real, _ = find_spots(newest[chunk], field)
        found, brightness = find_spots(decoded, field)
        near = np.linalg.norm(found - real, axis=1) <= TOLERANCE
        located += int((near & (brightness > 0)).sum())
    return located / len(shown)


def ball_survival(world_model: WorldModel, experience: Replay, frames: int = 1000) -> float | None:
    """:func:`ball_located` on held-out real experience.

    Args:
        world_model: any codec of any game.
        experience: real frames that it was not fitted to.
        frames: about so many of them are looked at, evenly spaced.

    Returns:
        The fraction, in [0, 1]; None where there is no ball to look for: in another game, at another size, or where
        none of the frames shows one.
    """
    if world_model.config.game != "Pong" or world_model.codec.frame_shape[1:] not in FIELDS:
        return None
    every = np.arange(0, len(experience), max(1, len(experience) // frames))
    shown = experience.frames_at(every, stack=world_model.frame_stack)
    field = experience.background()
    return ball_located(world_model, shown, field) if shows_ball(shown[:, -1], field).any() else None
