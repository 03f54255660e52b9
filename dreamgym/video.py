"""Imagined beside real: the same start, the same actions, as a video or as a strip of frames."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dreamgym.acts import real_acts
from dreamgym.checkpoint import Dream, write_atomic
from dreamgym.errors import InvalidInputError
from dreamgym.fidelity import episode_spans, open_loop

if TYPE_CHECKING:
    from dreamgym.replay import Replay

Frames = npt.NDArray[np.uint8]

PANEL_GAP = 4
"""Pixels between two panels."""

CAPTION_HEIGHT = 22
"""Pixels of the bar above the panels and of the one below them."""

GREY = (160, 160, 160)
WHITE = (255, 255, 255)
GREEN = (110, 230, 110)
RED = (255, 110, 110)


class Comparison(NamedTuple):
    """A stretch of the real game and the dream of it. Step 0 is the start, which is real for both.

    Attributes:
        real: the game's newest frames, uint8 (steps + 1, height, width).
        dream: the dream's; the first is the start, encoded and decoded.
        real_rewards: raw reward that each step gave, float32 (steps + 1,); zero at step 0.
        dream_rewards: expected reward of each step, in [-1, 1].
        real_latents: codes of the real frames, int64 (steps + 1, ...).
        dream_latents: the dreamt codes.
    """

    real: Frames
    dream: Frames
    real_rewards: npt.NDArray[np.float32]
    dream_rewards: npt.NDArray[np.float32]
    real_latents: npt.NDArray[np.int64]
    dream_latents: npt.NDArray[np.int64]


def compare_rollouts(
    dream: Dream, replay: Replay, *, start: int | None = None, horizon: int = 50, seed: int = 0
) -> Comparison:
    """Dream on from a moment of the real game, with the actions that were really taken.

    Args:
        dream: its world model dreams; its start states tell with how many frames of context.
        replay: real experience.
        start: the record where the dream starts; by default one is drawn that has a full context before it and the
            horizon behind it in the same episode, or the longest such stretch there is.
        horizon: steps of the dream; fewer when the episode is over before.
        seed: of the drawn start and of what is drawn in the dream.

    Returns:
        What happened and what was dreamt.

    Raises:
        InvalidInputError: a horizon below one, or a start outside the replay or at its or its episode's last record.
    """
    if horizon < 1:
        raise InvalidInputError(f"horizon: expected at least 1, got {horizon}.")
    context = dream.starts.latents.shape[1]
    begin, stop = episode_spans(replay)
    if start is None:
        start = _choose_start(begin, stop, context, horizon, np.random.default_rng(seed))
    if not 0 <= start < len(replay) - 1 or start + 1 >= stop[start]:
        raise InvalidInputError(
            f"start: expected a record of the replay (0 to {len(replay) - 1}) that another one of its episode follows, "
            f"got {start}."
        )
    warm = start - max(start - context + 1, int(begin[start]))
    steps = min(start + horizon, int(stop[start]) - 1) - start
    return _roll_out(dream, replay, np.array([start]), warm, steps, seed)[0]


def compare_many(
    dream: Dream, replay: Replay, *, starts: int = 24, horizon: int = 50, seed: int = 0
) -> list[Comparison]:
    """Dream on from several drawn moments at once, each as :func:`compare_rollouts` does.

    Args:
        dream: its world model dreams; its start states tell with how many frames of context.
        replay: real experience.
        starts: how many moments are drawn, evenly and without replacement, from those with the longest future and a
            full context; fewer where there are fewer.
        horizon: steps of the dreams; fewer where no episode is as long.
        seed: of the drawn moments and of what is drawn in the dreams.

    Returns:
        What happened and what was dreamt, all of the same length; at least one.

    Raises:
        InvalidInputError: a horizon or number of starts below one, or an empty replay.
    """
    for name, value in (("horizon", horizon), ("starts", starts)):
        if value < 1:
            raise InvalidInputError(f"{name}: expected at least 1, got {value}.")
    context = dream.starts.latents.shape[1]
    begin, stop = episode_spans(replay)
    pool = _full_starts(begin, stop, context, horizon)
    chosen = np.random.default_rng(seed).choice(pool, size=min(starts, len(pool)), replace=False)
    # All have the longest past and the longest future that there are.
    warm = min(int(chosen[0] - begin[chosen[0]]), context - 1)
    return _roll_out(dream, replay, chosen, warm, min(horizon, int(stop[chosen[0]] - 1 - chosen[0])), seed)


def _roll_out(
    dream: Dream, replay: Replay, starts: npt.NDArray[np.int64], warm: int, steps: int, seed: int
) -> list[Comparison]:
    """Dream on for so many steps from each start, after so many frames before it."""
    model, count = dream.world_model, len(starts)
    indices = starts[:, None] + np.arange(-warm, steps + 1)
    frames = replay.frames_at(indices.reshape(-1), stack=model.frame_stack)
    codes = model.encode(frames).unflatten(0, indices.shape)
    newest = frames[:, -1].reshape(*indices.shape, *frames.shape[2:])
    actions = real_acts(model, replay, indices[:, :-1])
    generator = torch.Generator(device=model.device)
    generator.manual_seed(seed)
    elapsed = torch.as_tensor(replay.elapsed_at(indices[:, 0]), device=model.device)
    dreamt = open_loop(model, codes[:, : warm + 1], actions, generator, temperature=dream.temperature, elapsed=elapsed)
    latents = torch.cat([codes[:, warm : warm + 1], dreamt.latents], dim=1)
    decoded = model.decode(latents.flatten(0, 1))[:, -1].unflatten(0, (count, steps + 1)).cpu().numpy()
    nothing = np.zeros((count, 1), dtype=np.float32)
    real = np.concatenate([nothing, replay.rewards_at(indices[:, warm:-1]).astype(np.float32)], axis=1)
    expected = np.concatenate([nothing, dreamt.rewards.float().cpu().numpy()], axis=1)
    return [
        Comparison(newest[i, warm:], decoded[i], real[i], expected[i], codes[i, warm:].cpu().numpy(), drawn)
        for i, drawn in enumerate(latents.cpu().numpy())
    ]


def _choose_start(
    begin: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    context: int,
    horizon: int,
    random: np.random.Generator,
) -> int:
    """A start frame drawn uniformly from those with the longest future, up to the horizon, and a full context."""
    return int(random.choice(_full_starts(begin, stop, context, horizon)))


def _full_starts(
    begin: npt.NDArray[np.int64], stop: npt.NDArray[np.int64], context: int, horizon: int
) -> npt.NDArray[np.int64]:
    """Records with the longest future, up to the horizon, among those with the longest context, up to a full one."""
    if not len(begin):
        raise InvalidInputError("replay: expected real experience to compare with, got an empty replay.")
    records = np.arange(len(begin))
    past = np.minimum(records - begin + 1, context)
    future = np.minimum(stop - 1 - records, horizon)
    future = np.where(past == past[future > 0].max(initial=0), future, 0)
    return np.flatnonzero(future == future.max())


def side_by_side(
    real: Frames,
    dream: Frames,
    *,
    real_rewards: npt.NDArray[np.float32] | None = None,
    dream_rewards: npt.NDArray[np.float32] | None = None,
    scale: int = 4,
) -> Frames:
    """Frames of a video: the real game on the left, the dream in the middle, the difference on the right.

    Args:
        real: uint8 (time, height, width), or (time, height, width, 3) in RGB.
        dream: the same shape.
        real_rewards: (time,): shown when given, with their sum so far.
        dream_rewards: (time,): the dream's.
        scale: every pixel becomes so many wide and high.

    Returns:
        uint8 (time, ...height, ...width, 3) in RGB.

    Raises:
        InvalidInputError: frames that are no pictures or differ in shape, rewards of another length, a scale below one.
    """
    real, dream = _colour(real, "real"), _colour(dream, "dream")
    if real.shape != dream.shape:
        raise InvalidInputError(f"dream: expected frames of the real ones' shape {real.shape}, got {dream.shape}.")
    for name, rewards in (("real_rewards", real_rewards), ("dream_rewards", dream_rewards)):
        if rewards is not None and len(rewards) != len(real):
            raise InvalidInputError(f"{name}: expected {len(real)}, one for each frame, got {len(rewards)}.")
    difference = np.abs(real.astype(np.int16) - dream).astype(np.uint8)
    panels = [_enlarge(panel, scale) for panel in (real, dream, difference)]
    time, height, width = panels[0].shape[:3]
    canvas = np.zeros((time, height + 2 * CAPTION_HEIGHT, 3 * width + 2 * PANEL_GAP, 3), dtype=np.uint8)
    for column, (panel, caption) in enumerate(zip(panels, ("real", "dream", "difference"), strict=True)):
        left = column * (width + PANEL_GAP)
        canvas[:, CAPTION_HEIGHT : CAPTION_HEIGHT + height, left : left + width] = panel
        for picture in canvas:
            _write(picture, caption, left + 4, CAPTION_HEIGHT - 7, WHITE)
    for column, rewards in enumerate((real_rewards, dream_rewards)):
        if rewards is None:
            continue
        for picture, reward, total in zip(canvas, rewards, np.cumsum(rewards), strict=True):
            colour = GREEN if reward > 0.5 else RED if reward < -0.5 else GREY
            text = f"reward {reward:+.2f}  sum {total:+.2f}"
            _write(picture, text, column * (width + PANEL_GAP) + 4, CAPTION_HEIGHT + height + 15, colour)
    for step, picture in enumerate(canvas):
        _write(picture, f"step {step}", 2 * (width + PANEL_GAP) + 4, CAPTION_HEIGHT + height + 15, GREY)
    return canvas


def strip(
    real: Frames, dream: Frames, *, steps: Sequence[int] | None = None, columns: int = 13, scale: int = 2
) -> Frames:
    """One picture of single frames: real ones above, dreamt ones below.

    Args:
        real: uint8 (time, height, width), or (time, height, width, 3) in RGB.
        dream: the same shape.
        steps: which frames; by default all.
        columns: frames in a row; more of them go into another pair of rows below.
        scale: every pixel becomes so many wide and high.

    Returns:
        uint8 (...height, ...width, 3) in RGB.

    Raises:
        InvalidInputError: frames that are no pictures or differ in shape, a step that is not there, columns or scale
            below one.
    """
    real, dream = _colour(real, "real"), _colour(dream, "dream")
    if real.shape != dream.shape:
        raise InvalidInputError(f"dream: expected frames of the real ones' shape {real.shape}, got {dream.shape}.")
    chosen = list(range(len(real)) if steps is None else steps)
    if not chosen or not all(0 <= step < len(real) for step in chosen):
        raise InvalidInputError(f"steps: expected some of 0 to {len(real) - 1}, got {chosen}.")
    if columns < 1:
        raise InvalidInputError(f"columns: expected at least 1, got {columns}.")
    top, bottom = _enlarge(real[chosen], scale), _enlarge(dream[chosen], scale)
    _, height, width = top.shape[:3]
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    row_height = CAPTION_HEIGHT + 2 * height + 2 * PANEL_GAP
    canvas = np.zeros((rows * row_height, columns * (width + PANEL_GAP) - PANEL_GAP, 3), dtype=np.uint8)
    for index, step in enumerate(chosen):
        y, x = (index // columns) * row_height, (index % columns) * (width + PANEL_GAP)
        _write(canvas, f"step {step}" if index == 0 else str(step), x + 4, y + CAPTION_HEIGHT - 7, WHITE)
        y += CAPTION_HEIGHT
        canvas[y : y + height, x : x + width] = top[index]
        canvas[y + height + PANEL_GAP : y + 2 * height + PANEL_GAP, x : x + width] = bottom[index]
    return canvas


def write_video(path: str | Path, frames: Frames, fps: float = 15) -> Path:
    """Write a video, beside its place first and then renamed into it.

    Args:
        path: a file that ends in ``.mp4`` or ``.gif``; its folder is made.
        frames: uint8 (time, height, width, 3) in RGB.
        fps: frames per second.

    Returns:
        The path.

    Raises:
        InvalidInputError: another ending, frames of another shape or type, or a codec that this build of OpenCV lacks.
    """
    path = Path(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise InvalidInputError(f"frames: expected uint8 (time, height, width, 3), got {frames.dtype} {frames.shape}.")
    if fps <= 0:
        raise InvalidInputError(f"fps: expected more than 0, got {fps}.")
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise InvalidInputError(f"path: expected a file ending in .mp4 or .gif, got {path}.")
    write_atomic(
        path, lambda beside: (_write_gif if path.suffix.lower() == ".gif" else _write_mp4)(beside, frames, fps)
    )
    return path


def _write_gif(path: Path, frames: Frames, fps: float) -> None:
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)


def _write_mp4(path: Path, frames: Frames, fps: float, codec: str = "mp4v") -> None:
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    if not writer.isOpened():
        raise InvalidInputError(f"path: this build of OpenCV cannot write {path.suffix} of {codec}; use .gif.")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def browser_video(frames: Frames, fps: float = 15) -> bytes:
    """A video that browsers play, which they do not with those of :func:`write_video`: an MP4 of VP9.

    Args:
        frames: uint8 (time, height, width, 3) in RGB.
        fps: frames per second.

    Returns:
        The file's bytes.

    Raises:
        InvalidInputError: this build of OpenCV lacks the codec.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        _write_mp4(file, frames, fps, "vp09")
        return file.read_bytes()


def write_image(path: str | Path, image: Frames) -> Path:
    """Write a picture as PNG, beside its place first and then renamed into it.

    Args:
        path: a file that ends in ``.png``; its folder is made.
        image: uint8 (height, width, 3) in RGB.

    Returns:
        The path.

    Raises:
        InvalidInputError: another ending, or a picture of another shape or type.
    """
    path = Path(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InvalidInputError(f"image: expected uint8 (height, width, 3), got {image.dtype} {image.shape}.")
    if path.suffix.lower() != ".png":
        raise InvalidInputError(f"path: expected a file ending in .png, got {path}.")
    write_atomic(path, lambda beside: Image.fromarray(image).save(beside))
    return path


def _colour(frames: Frames, name: str) -> Frames:
    """Grey frames as RGB ones; RGB ones as they are."""
    if frames.dtype == np.uint8 and frames.ndim == 3:
        return np.repeat(frames[..., None], 3, axis=-1)
    if frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3:
        return frames
    raise InvalidInputError(
        f"{name}: expected uint8 (time, height, width) or (time, height, width, 3), got {frames.dtype} {frames.shape}."
    )


def _enlarge(frames: Frames, scale: int) -> Frames:
    if scale < 1:
        raise InvalidInputError(f"scale: expected at least 1, got {scale}.")
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _write(picture: Frames, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """Write into a picture, in place."""
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
