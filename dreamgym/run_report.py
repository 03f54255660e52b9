"""The report of a run: one page of HTML with all that is worth seeing of it, for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dreamgym import pages
from dreamgym.cases import Case, representative_cases
from dreamgym.charts import Axis, Series, bar_chart, line_chart
from dreamgym.checkpoint import Dream, write_text
from dreamgym.codebook import CodebookUse, codebook_use
from dreamgym.episodes import join_episodes
from dreamgym.errors import CheckpointError, DreamgymError
from dreamgym.events import STEP_EDGES
from dreamgym.fidelity import REPORT_STEPS
from dreamgym.run_facts import RunFacts, Scored, facts_of
from dreamgym.run_folder import run_of
from dreamgym.video import browser_video, side_by_side, strip

if TYPE_CHECKING:
    from dreamgym.replay import Replay

REPORT_FILE = "report.html"
"""What a run's report is called in its folder."""

MOST_BYTES = 15_000_000
"""How large a report may be: it is sent by mail and opened on phones."""

_PANEL = 192
"""Width in pixels of one picture of a video, about: captions in it need as many."""

_STRIP_STEPS = (0, 1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 50)
_COUNTED_FRAMES = 2_000
"""Records on which operations are counted."""

_RANGES = [*pairwise(STEP_EDGES)]
_RANGE_NAMES = [f"{low + 1} to {high}" for low, high in _RANGES]


def write_report(path: Path | str, file: Path, dream: Dream, unseen: Replay, *, seed: int = 0, fps: float = 8) -> Path:
    """Write the report of a run, or of a dream that stands for itself, as one file that needs no network.

    Scores, fidelity, times and settings are those that the run recorded, in its folder or in the header of an exported
    file; what was not recorded the page says is not known. Pictures, videos and the codebook's use are made anew.

    Args:
        path: of the page; its folder is made.
        file: that the dream was loaded from.
        dream: what dreams.
        unseen: real experience that the world model was not fitted to.
        seed: of the drawn starts and of the dreams.
        fps: frames a second of the videos.

    Returns:
        The path.

    Raises:
        CheckpointError: what the file or the run's folder says of itself is damaged.
        InvalidInputError: there is no real experience.
    """
    facts = facts_of(file, dream)
    cases = representative_cases(dream, unseen, seed=seed)
    use = codebook_use(dream.world_model, unseen)
    operations = _operations(file, dream, unseen)
    try:
        content = _page(facts, dream, cases, use, operations, fps)
    except DreamgymError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: what it says of its run is damaged: expected what train and export write, got "
            f"{type(error).__name__} {error}. Restore it from a copy."
        ) from error
    path = Path(path)
    write_text(path, content)
    return path


def _operations(file: Path, dream: Dream, unseen: Replay) -> Mapping[str, float]:
    """Floating-point operations by phase; none where there is no run whose settings say how many of each."""
    from dreamgym.plan import count_operations

    folder = run_of(file)
    if folder is None:
        return {}
    config, spans = folder.config(), [(unseen, *span) for span in unseen.iter_episodes()]
    needed = next((n for n in range(1, len(spans)) if sum(b - a for _, a, b in spans[-n:]) >= _COUNTED_FRAMES), 0)
    some = join_episodes(spans[-needed:], _COUNTED_FRAMES)
    if len(some) < max(config.fit.sequence_length + 2, config.dream.context):
        return {}
    return count_operations(config, dream.world_model, some)


def _page(
    facts: RunFacts,
    dream: Dream,
    cases: Sequence[Case],
    use: CodebookUse,
    operations: Mapping[str, float],
    fps: float,
) -> str:
    return pages.page(
        facts.game if facts.name == facts.game else f"{facts.game}: {facts.name}",
        _lead(facts, dream),
        [
            _scores(facts),
            _fidelity(facts),
            _beside(cases, fps),
            _codebook(use),
            _costs(facts, operations),
            _origin(facts, dream),
        ],
    )


def _lead(facts: RunFacts, dream: Dream) -> str:
    about, last = facts.about, facts.scored[-1] if facts.scored else None
    model = sum(dream.world_model.parameter_counts().values())
    seconds = about.get("seconds")
    numbers = {
        "real score": "not measured yet" if last is None else f"{last.mean:,.2f}",
        "95 % interval": "-" if last is None else f"{last.low:,.2f} to {last.high:,.2f}",
        "random actions": "-" if facts.random is None else f"{facts.random['mean']:,.2f}",
        "real steps": pages.shown(about.get("interactions")),
        "imagined steps": pages.shown(about.get("imagined_steps")),
        "time": "-" if seconds is None else f"{seconds / 60:,.1f} min",
        "parameters": f"{model / 1e6:,.2f} M",
        "seed": pages.shown(about.get("seed")),
    }
    preset, algorithm = pages.shown(about.get("preset")), pages.shown(about.get("algo"))
    state = ""
    if facts.rounds is not None and facts.rounds[0] < facts.rounds[1]:
        state = f" The run is not finished: {facts.rounds[0]} of {facts.rounds[1]} rounds are."
    games = "" if last is None else f" The score is the mean of {last.episodes} episodes of the real game."
    said = f"A learned simulator of {facts.game}, preset {preset}, agent {algorithm}.{games}{state}"
    return pages.text(said) + pages.facts(numbers)


def _scores(facts: RunFacts) -> str:
    scored = facts.scored
    if not scored:
        return pages.section("Scores", pages.text("No score of the real game was recorded."))
    return pages.section("Scores", pages.cards(score_figure("scores", [facts]), *_dream_figure(scored)))


def score_figure(name: str, runs: Sequence[RunFacts]) -> str:
    """The real score by real steps, with its interval, of runs of one game, beside what others score.

    Args:
        name: unique on the page.
        runs: of one game; those without a score are left out.

    Returns:
        A figure as HTML.
    """
    runs = [run for run in runs if run.scored]
    lines = [
        Series(
            run.name if len(runs) > 1 else "real score",
            [score.interactions for score in run.scored],
            [score.mean for score in run.scored],
            [score.low for score in run.scored],
            [score.high for score in run.scored],
        )
        for run in runs
    ]
    known, random = runs[0].published, next((run.random for run in runs if run.random), None)
    references = [("random actions", float(random["mean"]))] if random is not None else []
    note = "No published scores are known of this game."
    if known is not None:
        references += [("human", known.human), ("published, 4 frames", known.four_frames)]
        references += [] if random is not None else [("random actions", known.random)]
        note = (
            "Human: Wang et al. 2016. Published: Robine et al. 2023, Table 2, at 100,000 real steps "
            f"(with one frame a step {known.one_frame:,.1f})."
        )
    rows = [
        (run.name, score.round, score.interactions, score.mean, score.low, score.high, score.episodes)
        for run in runs
        for score in run.scored
    ]
    rows += [(label, None, None, value, None, None, None) for label, value in references]
    last = "; ".join(f"{run.name} ends at {run.scored[-1].mean:,.2f}" for run in runs)
    title = f"Real score of {runs[0].game}"
    chart = line_chart(
        name,
        title,
        f"Mean score in the real game against real steps, with 95 % intervals. {last}.",
        lines,
        Axis("real steps"),
        Axis("score, mean and 95 %"),
        references,
    )
    head = ("", "round", "real steps", "score", "low", "high", "episodes")
    return pages.figure(
        title, f"Mean of whole episodes, 95 % bootstrap interval. {note}", chart, numbers=pages.table(head, rows)
    )


def _dream_figure(scored: Sequence[Scored]) -> list[str]:
    """What the policy gets in its dream beside what it gets in as many real steps; nothing where one is not known."""
    rows = [(s, s.dream, s.per_step) for s in scored if s.dream is not None and s.per_step is not None]
    known = [(s, dream, each * dream["length"]) for s, dream, each in rows]
    if not known:
        return [pages.figure("Return in the dream", "It was not recorded: an exported file does not hold it.")]
    steps = [s.interactions for s, _, _ in known]
    dreamt = Series(
        "in the dream", steps, *([dream[part] for _, dream, _ in known] for part in ("mean", "low", "high"))
    )
    real = Series("in the real game", steps, [value for _, _, value in known])
    length = known[-1][1]["length"]
    title = "Return in the dream and in the game"
    chart = line_chart(
        "dream",
        title,
        f"The policy's return in a dream of about {length:.0f} steps, and its real return in as many steps, by round.",
        [dreamt, real],
        Axis("real steps"),
        Axis(f"return of {length:.0f} steps"),
    )
    head = ("round", "real steps", "in the dream", "low", "high", "in the game", "dreams", "steps of a dream")
    numbers = [
        (s.round, s.interactions, d["mean"], d["low"], d["high"], value, int(d["episodes"]), d["length"])
        for s, d, value in known
    ]
    caption = (
        f"A dream lasts about {length:.0f} steps; the real return is scaled to as many. Rewards are clipped to "
        "[-1, 1] in the dream and are the game's own in the game. Where the dream pays more, it is exploited."
    )
    return [pages.figure(title, caption, chart, numbers=pages.table(head, numbers))]


def _fidelity(facts: RunFacts) -> str:
    title = "How faithful the dream is"
    if not facts.fidelity:
        return pages.section(title, pages.text("It was not measured: there were no held-out episodes."))
    chosen = _spread(facts.fidelity, 4)
    label, last = facts.fidelity[-1]
    windows = last.get("windows_uniform")
    on = f" on {windows:,.0f} windows" if windows else ""
    said = (
        f"Measured{on} of real episodes that were never fitted to. The dream sees real frames first and then only the "
        "actions that were really taken."
    )
    figures = [
        _accuracy_figure(chosen),
        _event_figure("recall", "Rewards that are foreseen", label, last),
        _event_figure("precision", "Dreamt rewards that are real", label, last),
        _calibration_figure("calibration", "How sure it may be of rewards", label, last),
        _calibration_figure("end_calibration", "How sure it may be of ends", label, last),
    ]
    names = [name for name, value in last.items() if isinstance(value, int | float)]
    head = ("", *(name for name, _ in chosen))
    rows = [(name.replace("_", " "), *(_single(values.get(name)) for _, values in chosen)) for name in names]
    every = pages.folded("Every number that was measured", pages.table(head, rows))
    return pages.section(title, pages.text(said), pages.cards(*figures), every)


def _single(value: Any) -> float | None:
    return None if value is None else float(value)


def _spread(values: Sequence[tuple[str, Any]], most: int) -> list[tuple[str, Any]]:
    """A few of them, evenly, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))
    return [values[index] for index in chosen]


def _accuracy_figure(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    lines: list[Series] = []
    for label, values in measured:
        whole = values.get("code_accuracy")
        known = [step for step in REPORT_STEPS if f"code_accuracy_{step}" in values]
        if isinstance(whole, list) and whole:
            accuracy = [float(value) for value in cast("list[Any]", whole)]
            lines.append(Series(label, list(range(1, len(accuracy) + 1)), accuracy))
        elif known:
            lines.append(Series(label, known, [float(values[f"code_accuracy_{step}"]) for step in known]))
    title = "Codes that are the real ones"
    if not lines:
        return pages.figure(title, "It was not recorded.")
    steps = sorted({step for line in lines for step in line.x})
    by_label = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    rows = [(int(step), *(values.get(step) for values in by_label)) for step in steps]
    chart = line_chart(
        "accuracy",
        title,
        f"Fraction of codes that are the real frame's, by step of the dream. {lines[-1].label}: "
        f"{lines[-1].y[0]:.2f} at the first step, {lines[-1].y[-1]:.2f} at the last.",
        lines,
        Axis("step of the dream"),
        Axis("fraction of codes", high=1.0),
    )
    head = ("step", *(line.label for line in lines))
    return pages.figure(title, "Code by code; 1 is best.", chart, numbers=pages.table(head, rows))


def _event_figure(kind: str, title: str, label: str, values: Mapping[str, Any]) -> str:
    """Recall or precision by range of steps, of lost and won points and of ends."""
    caption = {
        "recall": "Fraction of what really happened that was dreamt within two steps; 1 is best.",
        "precision": "Fraction of what was dreamt that really happened within two steps; 1 is best.",
    }[kind]
    lines: list[Series] = []
    for name, shown in ((f"{kind}_lost", "below 0"), (f"{kind}_won", "above 0"), (f"end_{kind}", "ends")):
        known = [
            (place, float(values[f"{name}_{low}_{high}"]))
            for place, (low, high) in enumerate(_RANGES)
            if f"{name}_{low}_{high}" in values
        ]
        if known:
            lines.append(Series(shown, [place for place, _ in known], [value for _, value in known]))
    if not lines:
        whole = values.get(kind)
        found = "nothing of the kind was seen" if whole is None else f"over all steps it was {float(whole):.2f}"
        return pages.figure(title, f"{caption} By step it was not recorded; {found}.")
    lines = [line._replace(label=f"rewards {line.label}" if line.label != "ends" else "ends") for line in lines]
    chart = line_chart(
        kind,
        title,
        f"{caption} After {label}, by range of steps of the dream.",
        lines,
        Axis("steps of the dream", names=_RANGE_NAMES),
        Axis(kind, 0.0, 1.0),
    )
    rows = [
        (name, *(dict(zip(line.x, line.y, strict=True)).get(place) for line in lines))
        for place, name in enumerate(_RANGE_NAMES)
    ]
    head = ("steps", *(line.label for line in lines))
    return pages.figure(title, f"{caption} After {label}.", chart, numbers=pages.table(head, rows))


def _calibration_figure(kind: str, title: str, label: str, values: Mapping[str, Any]) -> str:
    error = values.get(f"{kind}_error")
    caption = "How often what was dreamt is real, against how sure the dream was; on the diagonal it is right."
    if error is None:
        return pages.figure(title, "Nothing of the kind was dreamt: there is nothing to be sure of.")
    caption += f" Mean distance (expected calibration error) {float(error):.2f}."
    if f"{kind}_confidence" not in values:
        return pages.figure(title, f"{caption} By how sure it was, it was not recorded.")
    sure, real, share = ([float(v) for v in values[f"{kind}_{part}"]] for part in ("confidence", "real", "share"))
    chart = line_chart(
        kind.replace("_", ""),
        title,
        f"{caption} After {label}.",
        [Series("dreamt events", sure, real)],
        Axis("how sure the dream is", 0.0, 1.0),
        Axis("fraction that is real", 0.0, 1.0),
        diagonal=True,
    )
    rows = [*zip(sure, real, share, strict=True)]
    return pages.figure(
        title, caption, chart, numbers=pages.table(("how sure", "real", "share of dreamt events"), rows)
    )


def _beside(cases: Sequence[Case], fps: float) -> str:
    figures = [_case_figure(case, fps) for case in cases]
    said = (
        f"The same start, the same actions, from {cases[0].starts} moments drawn from real episodes that were never "
        "fitted to: the best, the median and the worst by how far frames differ where anything moves. In the videos "
        "the game is on the left, the dream in the middle, their difference on the right; in the strips the game is "
        "above, the dream below."
    )
    return pages.section("Imagined beside real", pages.text(said), pages.cards(*figures))


def _case_figure(case: Case, fps: float) -> str:
    shown = case.shown
    scale = max(1, math.ceil(_PANEL / shown.real.shape[2]))
    frames = side_by_side(
        shown.real,
        shown.dream,
        real_rewards=shown.real_rewards,
        dream_rewards=shown.dream_rewards,
        scale=scale,
    )
    # Video codecs take even sizes only.
    frames = np.ascontiguousarray(frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2])
    steps = len(shown.real) - 1
    same = float((shown.real_latents == shown.dream_latents)[1:].mean())
    caption = (
        f"Rank {case.rank} of {case.starts}: error {case.error:.3f} of full range; {same:.0%} of the codes are the "
        f"real ones; rewards add up to {shown.real_rewards.sum():+.2f} in the game and "
        f"{shown.dream_rewards.sum():+.2f} in the dream, in {steps} steps."
    )
    still = strip(
        shown.real, shown.dream, steps=[s for s in _STRIP_STEPS if s <= steps], columns=4, scale=max(1, scale // 2)
    )
    about = f"{case.label} dream beside the real game"
    size = (frames.shape[1], frames.shape[2])
    return pages.figure(
        case.label.capitalize(),
        caption,
        pages.film(browser_video(frames, fps), size, f"Video of {steps} steps: the {about}"),
        pages.picture(still, f"Single frames: the {about}, game above, dream below"),
    )


def _codebook(use: CodebookUse) -> str:
    codes = len(use.shares)
    said = (
        f"{use.used} of {codes} codes are used in {use.frames:,} real frames; perplexity {use.perplexity:.1f} (as "
        "diverse as so many equally common ones). Each is drawn where it is seen most often, the commonest first, with "
        "its share of all cells."
    )
    order = np.argsort(-use.shares, kind="stable")
    shares = [float(use.shares[code]) for code in order]
    tiles = [_tile(int(code), use) for code in order]
    seen, never = (f'<ul class="codes">{"".join(part)}</ul>' for part in (tiles[: use.used], tiles[use.used :]))
    total = np.cumsum(shares)
    title = "Use of the codes"
    chart = line_chart(
        "codebook",
        title,
        f"Cells that are shown by the commonest codes together: the first alone {total[0]:.0%}, the first ten "
        f"{total[min(9, codes - 1)]:.0%}.",
        [Series("cells", list(range(1, codes + 1)), [float(value) for value in total])],
        Axis("commonest codes"),
        Axis("share of all cells", 0.0, 1.0),
    )
    rows = [(str(int(code)), share) for code, share in zip(order, shares, strict=True)]
    figure = pages.figure(
        title,
        "Share of all cells that the commonest codes show together.",
        chart,
        numbers=pages.table(("code", "share"), rows),
    )
    drawn = pages.figure(
        "What each code draws", "By share of cells.", seen, pages.folded("Codes that were never seen", never)
    )
    return pages.section("Codebook", pages.text(said), pages.cards(figure), drawn)


def _tile(code: int, use: CodebookUse) -> str:
    share = float(use.shares[code])
    kind, words = ("", f"{share:.1%}" if share >= 0.001 else "&lt;0.1%") if share else (' class="unused"', "never")
    return f"<li{kind}>{pages.picture(use.pictures[code], f'code {code}')}{words}</li>"


def _costs(facts: RunFacts, operations: Mapping[str, float]) -> str:
    title, phases = "Time, operations and memory", facts.phases
    if not phases:
        seconds = facts.about.get("seconds")
        whole = "" if seconds is None else f" In all the run took {seconds / 60:,.1f} min."
        return pages.section(title, pages.text(f"By phase they are not known: an exported file has no log.{whole}"))
    minutes = [(phase.name, phase.seconds / 60, f"{phase.seconds / 60:,.1f} min") for phase in phases]
    figures = [_cost_figure("time", "Time", "Wall time of all rounds, by phase of the loop.", minutes)]
    if operations:
        caption = (
            "Floating-point operations of convolutions and matrix products in all rounds of the run, by phase: counted "
            "once for each kind of work in this run's networks, and multiplied."
        )
        counted = [(phase.name, operations.get(phase.name, 0.0)) for phase in phases]
        figures.append(
            _cost_figure("flop", "Operations", caption, [(name, flop, _flop(flop)) for name, flop in counted])
        )
    else:
        figures.append(pages.figure("Operations", "There was too little real experience to count them on."))
    for name, kind in (("Memory", "memory"), ("Memory of the graphics card", "gpu_memory")):
        held = [(phase.name, float(getattr(phase, kind))) for phase in phases]
        if any(value for _, value in held):
            caption = "The most that was held during the phase in any round, by the whole process."
            figures.append(
                _cost_figure(kind.replace("_", ""), name, caption, [(n, v, f"{v / 1e9:,.2f} GB") for n, v in held])
            )
        elif kind == "memory":
            figures.append(pages.figure(name, "The run did not record it."))
    return pages.section(title, pages.cards(*figures))


def _cost_figure(name: str, title: str, caption: str, bars: Sequence[tuple[str, float, str]]) -> str:
    said = "; ".join(f"{label} {text}" for label, _, text in bars)
    numbers = pages.table(("phase", title.lower()), [(label, text) for label, _, text in bars])
    return pages.figure(title, caption, bar_chart(name, title, f"{caption} {said}.", bars), numbers=numbers)


def _flop(value: float) -> str:
    """Operations with a unit that suits them."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value / 1e6:,.1f} MFLOP"


def _origin(facts: RunFacts, dream: Dream) -> str:
    about = facts.about
    names = ("version", "commit", "device", "machine", "matmul_gflops", "seed", "preset", "algo", "network", "command")
    rows = [(name.replace("_", " "), _words(about[name])) for name in names if about.get(name) is not None]
    rows += [
        ("earlier: " + str(index + 1), _words(earlier)) for index, earlier in enumerate(about.get("earlier") or [])
    ]
    rows += [
        ("parameters: " + part.replace("_", " "), f"{count:,}")
        for part, count in dream.world_model.parameter_counts().items()
    ]
    rows += [("path", str(facts.path))]
    settings = _flat(about.get("config") or {})
    config = (
        pages.folded("Every setting", pages.table(("setting", "value"), settings))
        if settings
        else pages.text("The run's settings were not recorded.")
    )
    return pages.section("Where it comes from", pages.table(("", ""), rows), config)


def _words(value: Any) -> str:
    """A value of the metadata as plain text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in cast("dict[str, Any]", value).items())
    return str(value) if isinstance(value, str | int) else pages.shown(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings, one a row, named as the command line names them."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
