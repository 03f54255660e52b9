"""What a run, or a dream's file, knows of itself, for the pages that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamgym.checkpoint import Dream, load_dream, resolve_checkpoint
from dreamgym.errors import CheckpointError, DreamgymError
from dreamgym.provenance import provenance
from dreamgym.published import PUBLISHED, Published
from dreamgym.run_folder import PHASES, evaluations, run_of


@dataclass(frozen=True)
class Scored:
    """A round after which the real game was played.

    Attributes:
        round: counted from 1; None where it is not known.
        interactions: real steps by then.
        mean: real score.
        low: lower end of its 95 % interval.
        high: upper end.
        episodes: how many it is the mean of.
        per_step: mean real reward of a step; None where lengths are not known.
        dream: the policy's return in its dream: ``mean``, ``low``, ``high``, and ``length``, mean steps of a dream.
    """

    round: int | None
    interactions: int
    mean: float
    low: float
    high: float
    episodes: int
    per_step: float | None = None
    dream: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Phase:
    """What one phase of the loop took in all rounds: seconds, and the most bytes held in any of them (0: unknown)."""

    name: str
    seconds: float
    memory: int
    gpu_memory: int


@dataclass(frozen=True)
class RunFacts:
    """All that is known without computing anything.

    Attributes:
        name: what to call it: the folder's or the file's name.
        path: of the folder or file.
        game: its name.
        about: metadata of the dream and, of a run, :func:`dreamgym.provenance.provenance`.
        scored: the rounds that were scored, oldest first.
        random: the score of random actions, as measured by the run; None where it is not known.
        fidelity: what was measured of the dream on held-out episodes, by round, oldest first: label and numbers.
        phases: what they took; empty where there is no log.
        rounds: how many were finished, and how many there are to be; None where there is no run.
    """

    name: str
    path: Path
    game: str
    about: Mapping[str, Any]
    scored: Sequence[Scored]
    random: Mapping[str, Any] | None
    fidelity: Sequence[tuple[str, Mapping[str, Any]]]
    phases: Sequence[Phase]
    rounds: tuple[int, int] | None

    @property
    def published(self) -> Published | None:
        """Published scores of its game, if there are any."""
        return PUBLISHED.get(self.game)


def run_facts(run: str) -> RunFacts:
    """What a run or file knows of itself.

    Args:
        run: a run folder, a dream's file, or an id.

    Raises:
        MissingWeightsError: there is no such dream.
        CheckpointError: its file, or one of the run's, is damaged.
    """
    file = resolve_checkpoint(run)
    return facts_of(file, load_dream(file))


def facts_of(file: Path, dream: Dream) -> RunFacts:
    """What a dream that was loaded from a file knows of itself, and its run if it has one.

    Args:
        file: where it was loaded from.
        dream: what was.

    Raises:
        CheckpointError: the file or one of the run's is damaged.
    """
    try:
        return _of_run(file, dream) if run_of(file) is not None else _of_file(file, dream)
    except DreamgymError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: what it says of its run is damaged: expected what train and export write, got "
            f"{type(error).__name__} {error}. Restore it from a copy."
        ) from error


def _of_run(file: Path, dream: Dream) -> RunFacts:
    folder = run_of(file)
    assert folder is not None
    log, config = folder.log(), folder.config()
    steps = {entry["round"]: entry["interactions"] for entry in log if entry["phase"] == "collect"}
    evaluated = evaluations(log)
    # The last part of a path such as "runs/pong/.." is no name.
    path = folder.path.resolve()
    return RunFacts(
        name=path.name,
        path=folder.path,
        game=config.game,
        about={**dream.metadata, **provenance(folder)},
        scored=[_scored(entry, steps[entry["round"]]) for entry in evaluated],
        random=next((entry["random"] for entry in evaluated if "random" in entry), None),
        fidelity=[
            (f"round {entry['round'] + 1}", {**entry["fidelity"], **_ball(entry)})
            for entry in log
            if entry.get("fidelity")
        ],
        phases=[
            Phase(
                name,
                sum(float(entry["seconds"]) for entry in log if entry["phase"] == name),
                *(
                    max((int(entry.get(kind, 0)) for entry in log if entry["phase"] == name), default=0)
                    for kind in ("memory", "gpu_memory")
                ),
            )
            for name in PHASES
        ],
        rounds=(folder.progress().round, config.rounds),
    )


def _ball(entry: Mapping[str, Any]) -> dict[str, float]:
    """Of Pong: how often the ball is where it belongs."""
    return {"ball_located": entry["ball_located"]} if "ball_located" in entry else {}


def _scored(entry: Mapping[str, Any], interactions: int) -> Scored:
    real, dream = entry["real"], entry["dream"]
    lengths = dream["lengths"]
    return Scored(
        round=int(entry["round"]) + 1,
        interactions=interactions,
        mean=float(real["mean"]),
        low=float(real["low"]),
        high=float(real["high"]),
        episodes=len(real["episodes"]),
        per_step=sum(real["episodes"]) / sum(real["lengths"]),
        dream={name: float(dream[name]) for name in ("mean", "low", "high")}
        | {"length": sum(lengths) / len(lengths), "episodes": len(lengths)},
    )


def _of_file(file: Path, dream: Dream) -> RunFacts:
    """A file that stands for itself knows its run's scores and the fidelity after its last round."""
    about = dream.metadata
    fidelity = about.get("fidelity")
    return RunFacts(
        name=file.stem,
        path=file,
        game=dream.world_model.config.game,
        about=about,
        scored=[
            Scored(
                None,
                int(score["interactions"]),
                float(score["mean"]),
                float(score["low"]),
                float(score["high"]),
                int(score["episodes"]),
            )
            for score in about.get("scores", [])
        ],
        random=about.get("random"),
        fidelity=[("the last round", dict(fidelity))] if fidelity else [],
        phases=[],
        rounds=None,
    )
