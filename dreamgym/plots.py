"""Figures of a run, as PNG files. They are drawn without pyplot, which would keep global state and want a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dreamgym.checkpoint import write_atomic
from dreamgym.errors import InvalidInputError

Measured = Mapping[str, Any]
"""What :func:`dreamgym.fidelity.fidelity` returns, or a :class:`dreamgym.evaluate.Score` ``as_dict()``."""


def plot_scores(
    path: str | Path,
    runs: Mapping[str, Sequence[Measured]],
    *,
    interactions: Sequence[int] | None = None,
    random: float | None = None,
    published: float | None = None,
    title: str = "",
) -> Path:
    """Draw the real score by round, with its 95 % interval, for one run or several.

    Args:
        path: the PNG to write; its folder is made.
        runs: by label, the score after every round as ``Score.as_dict()`` gives it (``mean``, ``low``, ``high``).
        interactions: real steps taken up to each round, for the horizontal axis; by default the round's number.
        random: score of random actions, drawn as a line.
        published: a score to compare with, drawn as a line.
        title: of the figure.

    Returns:
        The path.

    Raises:
        InvalidInputError: no scores, more rounds than ``interactions``, or a path that does not end in .png.
    """
    if not runs or not all(runs.values()):
        raise InvalidInputError("runs: expected at least one run with at least one score each.")
    longest = max(len(scores) for scores in runs.values())
    if interactions is not None and len(interactions) < longest:
        raise InvalidInputError(f"interactions: expected one for each of {longest} rounds, got {len(interactions)}.")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = list(interactions) if interactions is not None else list(range(1, longest + 1))
    for label, scores in runs.items():
        x = places[: len(scores)]
        (line,) = axes.plot(x, [score["mean"] for score in scores], marker="o", markersize=4, label=label)
        low, high = [score["low"] for score in scores], [score["high"] for score in scores]
        if len(scores) > 1:
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        else:
            axes.vlines(x, low, high, color=line.get_color(), alpha=0.5)
    if random is not None:
        axes.axhline(random, color="grey", linestyle="--", linewidth=1, label=f"random ({random:.1f})")
    if published is not None:
        axes.axhline(published, color="black", linestyle=":", linewidth=1, label=f"published ({published:.1f})")
    axes.set_xlabel("round" if interactions is None else "real steps")
    axes.set_ylabel("real score (mean, 95 % interval)")
    if interactions is None:
        axes.set_xticks(places)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, path)


def plot_fidelity(path: str | Path, measured: Mapping[str, Measured], *, title: str = "") -> Path:
    """Draw how a dream departs from the game by step: the codes on the left, the recall of points on the right.

    Args:
        path: the PNG to write; its folder is made.
        measured: by label (a round, a run), what :func:`dreamgym.fidelity.fidelity` returned.
        title: of the figure.

    Returns:
        The path.

    Raises:
        InvalidInputError: nothing was measured, or a path that does not end in .png.
    """
    if not measured:
        raise InvalidInputError("measured: expected at least one fidelity, got none.")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    codes, recall = figure.subplots(1, 2)
    ranges = sorted(
        {tuple(map(int, key.split("_")[2:])) for values in measured.values() for key in values if _is_recall_range(key)}
    )
    names = [f"{low}-{high}" for low, high in ranges]
    for label, values in measured.items():
        accuracy = values["code_accuracy"]
        (line,) = codes.plot(range(1, len(accuracy) + 1), accuracy, marker=".", label=label)
        for sign, style in (("lost", "-"), ("won", "--")):
            keys = [f"recall_{sign}_{name.replace('-', '_')}" for name in names]
            known = [(name, values[key]) for name, key in zip(names, keys, strict=True) if key in values]
            if known:
                x, y = [names.index(name) for name, _ in known], [value for _, value in known]
                recall.plot(x, y, style, marker="o", color=line.get_color(), label=f"{label}, {sign}")
    codes.set(xlabel="step of the dream", ylabel="codes that are the real frame's", ylim=(0, 1.02))
    recall.set(xlabel="steps of the dream", ylabel="recall of points", ylim=(-0.02, 1.02))
    recall.set_xticks(range(len(names)), names)
    for axes in (codes, recall):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    return _save(figure, path)


def _is_recall_range(key: str) -> bool:
    """Whether a key names a recall by range of steps: recall_lost_0_5."""
    return key.startswith(("recall_lost_", "recall_won_"))


def _save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, beside its place first and then renamed into it."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InvalidInputError(f"path: expected a file ending in .png, got {path}.")
    FigureCanvasAgg(figure)
    write_atomic(path, lambda beside: figure.savefig(beside, dpi=120))
    return path
