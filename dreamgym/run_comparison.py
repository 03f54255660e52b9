"""Several runs beside each other and beside published scores: a page for people, a table for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamgym import pages
from dreamgym.checkpoint import write_text
from dreamgym.errors import CheckpointError
from dreamgym.run_facts import RunFacts, Scored
from dreamgym.run_report import score_figure

COLUMNS: tuple[str, ...] = (
    "run",
    "game",
    "preset",
    "algo",
    "run_seed",
    "round",
    "interactions",
    "score",
    "low",
    "high",
    "episodes",
    "dream_return",
    "run_random",
    "random",
    "human",
    "published_4_frames",
    "published_1_frame",
    "human_normalised",
    "minutes",
    "imagined_steps",
    "machine",
    "version",
    "commit",
)
"""Of :func:`write_table`. ``minutes`` and ``imagined_steps`` are of the whole run, ``run_random`` is what it
measured."""


def write_table(path: Path | str, runs: Sequence[RunFacts]) -> Path:
    """Write a CSV file with a row for every scored round of every run; what is not known is left empty.

    Args:
        path: the file; its folder is made.
        runs: at least one.

    Returns:
        The path.
    """
    content = io.StringIO()
    writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run, name in zip(runs, _names(runs), strict=True):
        writer.writerows(_row(run, name, score) for score in run.scored)
    return _write(Path(path), content.getvalue())


def write_page(path: Path | str, runs: Sequence[RunFacts]) -> Path:
    """Write a page: the scores of each game's runs by real steps, and a table of where each run ended.

    Args:
        path: the file; its folder is made.
        runs: at least one.

    Returns:
        The path.

    Raises:
        CheckpointError: what a run says of itself is damaged.
    """
    named = [replace(run, name=name) for run, name in zip(runs, _names(runs), strict=True)]
    try:
        return _write(Path(path), _page(named))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{', '.join(str(run.path) for run in runs)}: what one says of its run is damaged: {type(error).__name__} "
            f"{error}. Restore it from a copy."
        ) from error


def _page(runs: Sequence[RunFacts]) -> str:
    games = list(dict.fromkeys(run.game for run in runs))
    figures: list[str] = []
    for index, game in enumerate(games):
        scored = [run for run in runs if run.game == game and run.scored]
        if scored:
            figures.append(score_figure(f"scores{index}", scored))
    without = [run.name for run in runs if not run.scored]
    missing = pages.text(f"Without a score of the real game: {', '.join(without)}.") if without else ""
    head = (
        "run",
        "game",
        "preset, agent",
        "seed",
        "real steps",
        "score",
        "95 % interval",
        "episodes",
        "random",
        "human",
        "published, 4 frames",
        "published, 1 frame",
        "human-normalised",
        "in the dream",
        "minutes",
        "machine",
        "code",
    )
    ends = [_end(run, _row(run, run.name, run.scored[-1])) for run in runs if run.scored]
    note = (
        "Scores of the last scored round of each run. Random is what the run measured, else what is published. "
        "Human-normalised: 0 is random play, 1 a person. Human: Wang et al. 2016. Published: Robine et al. 2023, "
        "Table 2, at 100,000 real steps."
    )
    return pages.page(
        f"{len(runs)} runs of {', '.join(games)}",
        pages.text("Real scores by real steps, with 95 % intervals, beside published ones."),
        [
            pages.section("Scores", missing, pages.cards(*figures)),
            pages.section("Where the runs ended", pages.text(note), pages.table(head, ends)),
        ],
    )


def _end(run: RunFacts, row: dict[str, Any]) -> tuple[Any, ...]:
    random = row["run_random"] if row["run_random"] is not None else row["random"]
    return (
        run.name,
        run.game,
        f"{pages.shown(row['preset'])}, {pages.shown(row['algo'])}",
        str(row["run_seed"]),
        row["interactions"],
        float(row["score"]),
        f"{row['low']:,.2f} to {row['high']:,.2f}",
        row["episodes"],
        random,
        row["human"],
        row["published_4_frames"],
        row["published_1_frame"],
        row["human_normalised"],
        row["dream_return"],
        row["minutes"],
        pages.shown(row["machine"]),
        " ".join(str(row[name])[:12] for name in ("version", "commit") if row[name]),
    )


def _row(run: RunFacts, name: str, score: Scored) -> dict[str, Any]:
    """All columns of one scored round; None where it is not known."""
    known, about = run.published, run.about
    seconds = about.get("seconds")
    return {
        "run": name,
        "game": run.game,
        "preset": about.get("preset"),
        "algo": about.get("algo"),
        "run_seed": about.get("seed"),
        "round": score.round,
        "interactions": score.interactions,
        "score": score.mean,
        "low": score.low,
        "high": score.high,
        "episodes": score.episodes,
        "dream_return": None if score.dream is None else score.dream["mean"],
        "run_random": None if run.random is None else float(run.random["mean"]),
        "random": None if known is None else known.random,
        "human": None if known is None else known.human,
        "published_4_frames": None if known is None else known.four_frames,
        "published_1_frame": None if known is None else known.one_frame,
        "human_normalised": None if known is None else known.normalised(score.mean),
        "minutes": None if seconds is None else seconds / 60,
        "imagined_steps": about.get("imagined_steps"),
        "machine": about.get("machine"),
        "version": about.get("version"),
        "commit": about.get("commit"),
    }


def _names(runs: Sequence[RunFacts]) -> list[str]:
    """What to call the runs: by their folders' names, or by their paths where these are alike."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for run, name in zip(runs, names, strict=True)]


def _write(path: Path, content: str) -> Path:
    write_text(path, content)
    return path
