"""What a run shows of itself: its table, a line a round, and the dream beside the real game."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dreamgym.checkpoint import Dream
from dreamgym.replay import Replay
from dreamgym.run_folder import evaluations
from dreamgym.video import Comparison, compare_rollouts, side_by_side, strip, write_image, write_video

Record = dict[str, Any]


def write_comparison(dream: Dream, replay: Replay, path: Path, horizon: int = 50, seed: int = 0) -> Path:
    """Write a video of the dream beside the real game, same start and same actions, and a strip of it beside the video.

    Args:
        dream: what dreams.
        replay: real experience with an episode of some length.
        path: of the video, .mp4 or .gif; the strip has the same name and ends in .png.
        horizon: steps shown.
        seed: of the start and of the dream.

    Returns:
        The video's path.
    """
    shown = compare_rollouts(dream, replay, horizon=horizon, seed=seed)
    frames = side_by_side(shown.real, shown.dream, real_rewards=shown.real_rewards, dream_rewards=shown.dream_rewards)
    write_image(path.with_suffix(".png"), _strip_of(shown))
    return write_video(path, frames)


def rollout_strip(dream: Dream, replay: Replay, seed: int = 0) -> npt.NDArray[np.uint8]:
    """The start and the next 24 imagined frames below the real ones, as one picture.

    Args:
        dream: what dreams.
        replay: real experience with an episode of some length.
        seed: of the start and of the dream.

    Returns:
        (height, width, 3) uint8 in RGB.
    """
    return _strip_of(compare_rollouts(dream, replay, horizon=24, seed=seed))


def _strip_of(shown: Comparison) -> npt.NDArray[np.uint8]:
    return strip(shown.real, shown.dream, steps=list(range(min(25, len(shown.real)))))


def summary_table(log: list[Record]) -> str:
    """The run round by round: real score with its interval beside the random one, dream return, fidelity.

    Args:
        log: the run's records.

    Returns:
        Lines of text.
    """
    evaluated = {e["round"]: e for e in evaluations(log)}
    steps = {e["round"]: e["interactions"] for e in log if e["phase"] == "collect"}
    measured = [name for entry in evaluated.values() for name in entry.get("fidelity", {})]
    steps_told = [int(name.removeprefix("code_accuracy_")) for name in measured if name.startswith("code_accuracy_")]
    last = max(steps_told, default=1)
    lines = [
        f"{'round':>6} {'real steps':>10} {'real score':>11} {'95 % interval':>17} {'dream':>7}  "
        f"codes@1 {f'codes@{last}':>8}  lost   won"
    ]
    first = next((entry["random"] for entry in evaluated.values() if "random" in entry), None)
    if first:
        lines.append(f"{'random':>6} {0:>10} {first['mean']:>11.2f} {_interval(first):>17}")
    for index, entry in sorted(evaluated.items()):
        found = entry.get("fidelity", {})
        columns = [found.get(n) for n in ("code_accuracy_1", f"code_accuracy_{last}", "recall_lost", "recall_won")]
        shown = ["-" if c is None else f"{c:.2f}" for c in columns]
        lines.append(
            f"{index + 1:>6} {steps[index]:>10} {entry['real']['mean']:>11.2f} {_interval(entry['real']):>17} "
            f"{entry['dream']['mean']:>7.2f}  {shown[0]:>7} {shown[1]:>8} {shown[2]:>5} {shown[3]:>5}"
        )
    return "\n".join(lines)


def _interval(score: Record) -> str:
    return f"[{score['low']:.2f}, {score['high']:.2f}]"


def round_line(log: list[Record], index: int, seconds: float) -> str:
    """One line on a finished round, and how long the run took so far."""
    entries = {e["phase"]: e for e in log if e["round"] == index}
    real_steps = f"{entries['collect']['interactions']:,} real steps"
    played = []
    if "real" in entries["evaluate"]:
        real, dream = entries["evaluate"]["real"], entries["evaluate"]["dream"]
        played = [f"real score {real['mean']:.2f} {_interval(real)}", f"dream {dream['mean']:.2f}"]
    measured = entries["fit"] | entries["evaluate"].get("fidelity", {}) | entries["evaluate"]
    shown = [
        f"{name} {measured[key]:{form}}"
        for name, key, form in (
            ("codec nats", "fit/codec/reconstruction", ".0f"),
            ("codes", "code_accuracy_1", ".2f"),
            ("lost points seen", "recall_lost", ".2f"),
            ("ball", "ball_located", ".2f"),
        )
        if key in measured
    ]
    spent = ", ".join(f"{phase} {entries[phase]['seconds']:.0f} s" for phase in entries)
    return f"round {index + 1}: {', '.join([real_steps, *played, *shown])}; {spent}; {seconds / 60:.1f} min in all"


def flat_numbers(record: Record, prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of a nested record by path; lists are left out."""
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            found += flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found.append((f"{prefix}{name}", float(value)))
    return found
