"""A dream's fidelity for people: every number beside what it means and what would be good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dreamgym.events import STEP_EDGES
from dreamgym.fidelity import REPORT_STEPS

_RANGES = [*pairwise(STEP_EDGES)]
_LABEL, _COLUMN = 26, 8


def fidelity_tables(found: Mapping[str, Any]) -> str:
    """Lay out what ``dreamgym evaluate --fidelity`` found of a dream.

    Args:
        found: ``held_out`` (``episodes`` and ``steps``), ``fidelity`` and, if policies were ranked, ``ranking``.

    Returns:
        Lines of text.
    """
    played, measured = found["held_out"], found["fidelity"]
    title = (
        f"fidelity on {played['episodes']} of these real episodes ({played['steps']:,} steps), which were never fitted "
        "to; dreams get real frames first, then only the real actions"
    )
    lines = [
        "",
        title,
        fidelity_table(measured) if measured else "  - (the episodes are shorter than the first frames)",
    ]
    return "\n".join([*lines, "", ranking_table(found["ranking"])] if "ranking" in found else lines)


def fidelity_table(measured: Mapping[str, Any]) -> str:
    """Lay out what :func:`dreamgym.fidelity.fidelity` measured.

    Args:
        measured: numbers by name; what is absent is shown as "-".

    Returns:
        Lines of text.
    """
    steps = [str(step) for step in REPORT_STEPS]
    ranges = [f"{low}-{high}" for low, high in _RANGES]
    keys = ["", *(f"_{low}_{high}" for low, high in _RANGES)]

    def by_step(label: str, name: str, note: str) -> str:
        return _row(label, [_number(measured.get(f"{name}_{step}")) for step in steps], note)

    def by_range(label: str, name: str, count: float) -> str:
        shown = [_number(measured.get(f"{name}{key}")) for key in keys]
        return _row(label, shown, f"of {count:,.0f} that happened")

    def single(label: str, name: str, good: str, note: str) -> str:
        return _row(label, [_number(measured.get(name)), good], note)

    lost, won, ends = (measured.get(f"events_{kind}", 0) for kind in ("lost", "won", "end"))
    marginal, codec = _number(measured.get("code_nll_marginal")), _number(measured.get("pixel_error_codec"))
    return "\n".join(
        [
            _row("at step of the dream", steps, ""),
            by_step("  code accuracy", "code_accuracy", "fraction of codes that are the real frame's; 1 is best"),
            by_step("  -log p of a code, nats", "code_nll", f"0 is best; each cell's own frequencies give {marginal}"),
            by_step("  pixel error", "pixel_error", f"of full range, where something moves; the codec alone: {codec}"),
            "",
            _row("recall, by steps", ["all", *ranges], "fraction of real events dreamt within 2 steps; 1 is best"),
            by_range("  rewards below 0", "recall_lost", lost),
            by_range("  rewards above 0", "recall_won", won),
            by_range("  rewards of both signs", "recall", lost + won),
            by_range("  ends", "end_recall", ends),
            "",
            _row("rewards", ["is", "good"], ""),
            single("  recall, steps 0-10", "recall_0_10", ">= 0.90", "both signs"),
            single("  recall, steps 15-25", "recall_15_25", ">= 0.75", "both signs"),
            single("  precision", "precision", ">= 0.85", "fraction of dreamt rewards that are real"),
            single("  precision, below 0", "precision_lost", ">= 0.85", ""),
            single("  precision, above 0", "precision_won", ">= 0.85", ""),
            single("  correlation", "reward_correlation", ">= 0.85", "of the sums over a dream, with the real ones"),
            single("  dreamt / real", "reward_ratio", "0.8-1.2", "mean rewards; says little where the signs cancel"),
            single("  dreamt / real, below 0", "reward_ratio_lost", "0.8-1.2", "expected events by real ones"),
            single("  dreamt / real, above 0", "reward_ratio_won", "0.8-1.2", "expected events by real ones"),
            single("  calibration error", "calibration_error", "0", "how sure it is against how often it is right"),
            "",
            _row("ends", ["is", "good"], ""),
            single("  recall, steps 0-10", "end_recall_0_10", "1", ""),
            single("  precision", "end_precision", "1", "fraction of dreamt ends that are real"),
            single("  dreamt / real", "end_ratio", "1", "expected ends by real ones"),
            single("  calibration error", "end_calibration_error", "0", "how sure it is against how often it is right"),
        ]
    )


def ranking_table(ranking: Mapping[str, Any]) -> str:
    """Lay out what :class:`dreamgym.ranking.Ranking` says of policies.

    Args:
        ranking: its ``as_dict()``.

    Returns:
        Lines of text.
    """
    correlation, by_step = ranking["rank_correlation"], ranking["rank_correlation_per_step"]
    interval = "" if ranking["low"] is None else f", 95 % {ranking['low']:.2f} to {ranking['high']:.2f}"
    games, dreams = (len(ranking["policies"][0][world]["episodes"]) for world in ("real", "dream"))
    rows = [
        _row(
            f"  {policy['name']}",
            [f"{policy['real']['mean']:.2f}", f"{policy['real_per_step']:.5f}", f"{policy['dream_per_step']:.5f}"],
            "",
            column=16,
        )
        for policy in ranking["policies"]
    ]
    return "\n".join(
        [
            f"ranking of policies: Spearman {_number(correlation)}{interval}; 1 is the game's order, 0 none "
            f"(by the game's return per step: {_number(by_step)})",
            _row("  actions", ["game, episode", "game, step", "dream, step"], "", column=16),
            *rows,
            f"  returns; {games} real episodes and {dreams} dreams of each policy",
        ]
    )


def _row(label: str, values: Sequence[str], note: str, column: int = _COLUMN) -> str:
    cells = "".join(f"{value:>{column}}" for value in values)
    return f"{label:<{_LABEL}}{cells}{f'  {note}' if note else ''}".rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
