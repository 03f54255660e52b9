"""A run's folder: its configuration, log, replay, checkpoints, and where it stands."""

import hashlib
import io
import json
import logging
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dreamgym.archives import load_tensors, non_finite
from dreamgym.checkpoint import DREAM_FILE, config_from_dict, write_atomic, write_text
from dreamgym.config import RunConfig
from dreamgym.episodes import Span, join_episodes
from dreamgym.errors import CheckpointError, ConfigError, ReplayError
from dreamgym.json_files import parse_json, read_text, sealed, unsealed
from dreamgym.replay import Replay
from dreamgym.shards import INDEX_NAME
from dreamgym.terminal import command_line

PHASES = ("collect", "fit", "train", "evaluate")
MACHINE_FIELDS = ("version", "commit", "device", "machine", "matmul_gflops", "earlier", "command")
"""What ``machine.json`` tells; ``earlier`` holds what it told before the run was resumed elsewhere."""

_REMAINS = re.compile(r"\..+-\d+(\.\w+)?|\..+\.part")
"""Names of files that are written beside their place: by ``write_atomic`` and by the replay."""

_log = logging.getLogger("dreamgym")


@dataclass
class Progress:
    """Where a run stands, written after every phase.

    Attributes:
        round: the round to go on with, counted from 0.
        phase: the phase to go on with, one of :data:`PHASES`.
        imagined_steps: steps dreamt so far.
        seconds: wall time of the finished phases.
        sums: SHA-256 of what the finished phases wrote, by file name: of the checkpoints that are kept, and of the log,
            its entries for these phases. Runs from before there were sums have none.
        sick: what went wrong in the phase to go on with, once for every time that it was begun and given up.
        lost: records of finished phases that were lost with damaged files of the replay.
        damage: what was lost so and why, once for every time that it happened.
        visits_from: the first round whose model counts the visits of the records that are left.
    """

    round: int = 0
    phase: str = "collect"
    imagined_steps: int = 0
    seconds: float = 0.0
    sums: dict[str, str] = field(default_factory=lambda: {})
    sick: tuple[str, ...] = ()
    lost: int = 0
    damage: tuple[str, ...] = ()
    visits_from: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.phase not in PHASES or min(self.round, self.imagined_steps, self.seconds, self.lost) < 0:
            raise ConfigError(
                f"expected a phase of {', '.join(PHASES)} and no negative numbers, got {self.phase!r} of round "
                f"{self.round}, {self.imagined_steps} imagined steps, {self.seconds} seconds"
            )

    def advance(self) -> None:
        """To the next phase, or to the next round."""
        following = PHASES.index(self.phase) + 1
        self.phase = PHASES[following % len(PHASES)]
        self.round += following == len(PHASES)
        self.sick = ()


class RunFolder:
    """Paths and files of one run. Every file is written beside its place and renamed.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: Path | str) -> None:
        """Name the places."""
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.log_file = self.path / "log.jsonl"
        self.progress_file = self.path / "progress.json"
        self.machine_file = self.path / "machine.json"
        self.replay = self.path / "replay"
        self.quarantine = self.path / "quarantine"
        self.held_out = self.path / "held_out"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    def resume_command(self, device: str = "auto") -> str:
        """The command that goes on with the run, on a device that was asked for."""
        chosen = "" if device == "auto" else f" --device {device}"
        return f"dreamgym train --out {command_line([str(self.path)])} --resume{chosen}"

    def how_to_go_on(self, device: str = "auto") -> str:
        """What there is to say to whoever stopped the run, in a sentence or two."""
        if not self.config_file.is_file():
            return "The run had not begun: give the same command once more."
        command = f"Go on with: {self.resume_command(device)}"
        try:
            progress, rounds = self.progress(), self.config().rounds
        except (CheckpointError, ConfigError):
            return command
        if progress.round >= rounds:
            return command
        return f"All that was finished is kept; round {progress.round + 1}, {progress.phase}, begins anew. {command}"

    def remove_remains(self) -> None:
        """Remove what killed processes left half written; only for whoever holds the run's lock."""
        for file in self.path.rglob(".*"):
            if _REMAINS.fullmatch(file.name) and file.is_file():
                file.unlink()

    def begin(self, config: RunConfig, resume: bool) -> Progress:
        """Open a new run, or one to go on with.

        Args:
            config: the run's, or one with more rounds: :meth:`lengthen`, once nothing can fail any more.
            resume: go on with the run that is there.

        Returns:
            Where it stands.

        Raises:
            ConfigError: the folder holds a run and ``resume`` is False, or that run has another configuration.
        """
        if self.config_file.is_file():
            if not resume:
                raise ConfigError(
                    f"{self.path} holds a run already. Go on with it: add --resume. Start afresh: choose another --out."
                )
            begun = self.config()
            longer = config.rounds > begun.rounds
            expected = replace(begun, rounds=config.rounds) if longer else begun
            different = _differences(expected.to_json(), config.to_json())
            if different:
                listed = "\n".join(f"  - {line}" for line in different)
                raise ConfigError(
                    f"{self.path}: --resume with other settings than the run's (run's / asked):\n{listed}\n"
                    f"Leave them out, or choose another --out; only more rounds than {begun.rounds} may be asked for."
                )
            return self.progress()
        remains = [file.name for file in (self.replay, self.log_file, self.progress_file) if file.exists()]
        if remains:
            raise ConfigError(
                f"{self.path}: expected an empty folder or a run, got {', '.join(remains)} without "
                f"{self.config_file.name}. Restore that file or choose another --out."
            )
        if resume:
            _log.warning("%s holds no run yet: starting one.", self.path)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        _write_json(self.config_file, config.to_json())
        return Progress()

    def lengthen(self, config: RunConfig) -> None:
        """Give a run the rounds of a configuration that :meth:`begin` accepted, if it had fewer."""
        rounds = self.config().rounds
        if config.rounds > rounds:
            _log.warning("%s: %d rounds instead of %d.", self.path, config.rounds, rounds)
            _write_json(self.config_file, config.to_json())

    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        try:
            return RunConfig.from_json(self._fields(self.config_file, "game", "preset", "seed"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path} is no run: {self.config_file.name}: {error}. Name a run's folder, or restore that file."
            ) from error

    def progress(self) -> Progress:
        """Where the run stands; at its start if no phase was finished.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.progress_file.is_file():
            return Progress()
        try:
            fields = self._fields(self.progress_file, "round", "phase", "imagined_steps", "seconds")
            return config_from_dict(Progress, fields)
        except (OSError, ValueError, CheckpointError) as error:
            raise CheckpointError(
                f"{self.progress_file} is damaged: {error}. Restore it or start the run anew."
            ) from error

    def save_progress(self, progress: Progress) -> None:
        """Write where the run stands in the midst of a phase."""
        _write_json(self.progress_file, asdict(progress))

    def save_machine(self, machine: dict[str, Any]) -> None:
        """Write what the run is computed on and by which code: times mean little without it.

        Where a resumed run's code or machine is another, what was written before is kept under ``"earlier"``.

        Args:
            machine: plain JSON, some of :data:`MACHINE_FIELDS`; ``matmul_gflops`` varies from start to start and makes
                no other machine.

        Raises:
            CheckpointError: the file that is there is damaged.
        """
        before = self.machine()
        earlier = before.pop("earlier", [])
        if before and any(before.get(name) != value for name, value in machine.items() if name != "matmul_gflops"):
            earlier = [*earlier, before]
        _write_json(self.machine_file, machine | ({"earlier": earlier} if earlier else {}))

    def machine(self) -> dict[str, Any]:
        """What :meth:`save_machine` wrote; empty if the run recorded none.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.machine_file.is_file():
            return {}
        try:
            machine = self._fields(self.machine_file)
            unknown = sorted(set(machine) - set(MACHINE_FIELDS))
            if unknown or not machine:
                raise ValueError(f"expected some of {', '.join(MACHINE_FIELDS)}, got {', '.join(unknown) or 'none'}")
            return machine
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.machine_file} is damaged: {error}. Restore it or remove it.") from error

    @staticmethod
    def _fields(file: Path, *expected: str) -> dict[str, Any]:
        """The fields of a JSON file that is the one that was written, some of which must be there."""
        fields = unsealed(parse_json(read_text(file)))
        missing = [name for name in expected if name not in fields]
        if missing:
            raise ValueError(f"expected the fields {', '.join(expected)}, got none called {', '.join(missing)}")
        return fields

    def finish_phase(self, progress: Progress, record: dict[str, Any] | None = None) -> None:
        """Log a phase's record, then move on: a phase counts from the instant when the progress file is renamed."""
        entries = [e for e in self.log() if (e["round"], e["phase"]) != (progress.round, progress.phase)]
        entries.append({"round": progress.round, "phase": progress.phase, **(record or {})})
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        write_text(self.log_file, lines)
        written = {"collect": self._played_file, "fit": self._model_file, "train": self._policy_file}.get(
            progress.phase
        )
        sums = dict(progress.sums)
        if written is not None and written(progress.round).is_file():
            sums[written(progress.round).name] = hashlib.sha256(written(progress.round).read_bytes()).hexdigest()
        progress.advance()
        dropped = {file.name for file in self._old_checkpoints(progress.round)}
        progress.sums = {name: digest for name, digest in sums.items() if name not in dropped}
        progress.sums[self.log_file.name] = _log_sum(entries, progress)
        self.save_progress(progress)
        for file in self._old_checkpoints(progress.round):
            file.unlink(missing_ok=True)

    def log(self) -> list[dict[str, Any]]:
        """One record a finished phase, oldest first.

        Raises:
            CheckpointError: the file is damaged.
        """
        progress = self.progress()
        expected = progress.sums.get(self.log_file.name)
        try:
            lines = read_text(self.log_file).splitlines() if self.log_file.is_file() else []
            entries = [_entry(parse_json(line)) for line in lines]
            # What an interrupted phase wrote after the progress file is not summed yet.
            if expected is not None and expected != _log_sum(entries, progress):
                raise ValueError("its entries are not those that the finished phases wrote")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.log_file} is damaged: {error}. Restore it or start the run anew.") from error
        return entries

    def load_replay(self, empty: Replay) -> Replay:
        """The experience so far; ``empty``, whose capacity it gets, if there is none.

        Raises:
            ReplayError: a file is missing or damaged.
        """
        self._set_aside(len(self.progress().damage))
        return _replay(self.replay, empty)

    def salvage_replay(self, progress: Progress, capacity: int, counted: int) -> Replay:
        """Put damaged experience aside, and go on with what of it is whole.

        What a phase that was not finished had collected is left out: it is collected again. The damaged folder is kept
        as it is, below ``quarantine``. A crash at any instant leaves the old folder or the new one.

        Args:
            progress: where the run stands; is told what was lost, and written.
            capacity: of the buffer.
            counted: records that the finished phases collected.

        Returns:
            The buffer that the run goes on with.

        Raises:
            ReplayError: nothing that was counted is whole, or the index is damaged.
        """
        replay, wrong = Replay.salvage(self.replay, capacity, counted - progress.lost)
        lost = counted - progress.lost - len(replay)
        if counted and not len(replay):
            raise ReplayError(f"{' '.join(wrong)} Nothing else is left of the run's experience: restore the folder.")
        number = len(progress.damage) + 1
        part = self._whole(number)
        shutil.rmtree(part, ignore_errors=True)
        replay.save(part)
        if lost:
            following = (
                f"{lost:,} of {counted:,} records are lost; the run goes on with the {len(replay):,} that are whole. "
                "It will not end as it would have: no resume is bit for bit the run that was begun any more."
            )
            trained = progress.phase in ("train", "evaluate")
            progress.visits_from = progress.round + trained
        else:
            following = "No record that was counted is lost; what was not is collected again."
        where = self.quarantine / f"replay-{number:03d}"
        progress.lost += lost
        progress.damage = (*progress.damage, f"{' '.join(wrong)} Put aside: {where}. {following}")
        self.save_progress(progress)
        self._set_aside(number)
        return Replay.load(self.replay, capacity)

    def _whole(self, number: int) -> Path:
        return self.quarantine / f"whole-{number:03d}"

    def _set_aside(self, number: int) -> None:
        """Let a salvaged replay take the place of the damaged one, if that was not done yet."""
        part = self._whole(number)
        if not part.is_dir():
            return
        aside = self.quarantine / f"replay-{number:03d}"
        if not aside.exists():
            self.replay.rename(aside)
        part.rename(self.replay)

    def save_held_out(self, round_index: int, episodes: Replay) -> None:
        """Write the real episodes that a round kept for measuring, instead of what an interrupted one wrote there."""
        folder = self._held_out_folder(round_index)
        shutil.rmtree(folder, ignore_errors=True)
        episodes.save(folder)

    def held_out_before(self, round_index: int) -> int:
        """How many episodes the rounds before one kept for measuring, as the log has it."""
        entries = [entry for entry in self.log() if entry["round"] < round_index]
        return sum(entry.get("held_out", {}).get("episodes", 0) for entry in entries)

    def load_held_out(self, capacity: int, episodes: int | None = None) -> Replay:
        """The newest real episodes kept for measuring, oldest first, or an empty buffer; damaged ones are left out.

        Args:
            capacity: most records; where they are too many, the newest are kept.
            episodes: most episodes; None takes all.
        """
        chosen: list[Span] = []
        # The folder itself holds the episodes of runs that kept those of one round only.
        for folder in [*sorted(self.held_out.glob("round-*"), reverse=True), self.held_out]:
            if sum(stop - start for _, start, stop in chosen) >= capacity:
                break
            if episodes is not None and len(chosen) >= episodes:
                break
            try:
                part = _replay(folder, Replay(capacity))
            except ReplayError as error:
                _log.warning("%s Fidelity is measured without these episodes, and so not as it would have been.", error)
                continue
            chosen += [(part, *span) for span in reversed(part.iter_episodes())]
        return join_episodes(chosen[:episodes][::-1], capacity)

    def save_model(self, round_index: int, state: dict[str, Any]) -> None:
        """Write the world model, its optimisers and the replay's visits after the fit of a round."""
        _save(self._model_file(round_index), state)

    def load_model(self, round_index: int) -> dict[str, Any]:
        """Read what :meth:`save_model` wrote.

        Raises:
            CheckpointError: the file is missing or damaged, or weights in it are not finite.
        """
        return self._load(self._model_file(round_index), {"world_model": dict, "fitter": dict, "visits": Tensor})

    def save_policy(self, round_index: int, parameters: dict[str, Any]) -> None:
        """Write the agent's tensors after the training of a round."""
        _save(self._policy_file(round_index), parameters)

    def load_policy(self, round_index: int) -> dict[str, Any]:
        """Read what :meth:`save_policy` wrote.

        Raises:
            CheckpointError: the file is missing or damaged, or weights in it are not finite.
        """
        return self._load(self._policy_file(round_index), {"policy": dict})

    def save_played(self, round_index: int, parameters: dict[str, Any]) -> None:
        """Write the agent's tensors after the collecting of a round in which it learned."""
        _save(self._played_file(round_index), parameters)

    def load_played(self, round_index: int) -> dict[str, Any]:
        """Read what :meth:`save_played` wrote.

        Raises:
            CheckpointError: the file is missing or damaged, or weights in it are not finite.
        """
        return self._load(self._played_file(round_index), {"policy": dict})

    def has_played(self, round_index: int) -> bool:
        """Whether the agent learned in the finished collecting of a round."""
        return self._played_file(round_index).name in self.progress().sums

    def _held_out_folder(self, round_index: int) -> Path:
        return self.held_out / f"round-{round_index:03d}"

    def _model_file(self, round_index: int) -> Path:
        return self.checkpoints / f"model-{round_index:03d}.pt"

    def _policy_file(self, round_index: int) -> Path:
        return self.checkpoints / f"policy-{round_index:03d}.pt"

    def _played_file(self, round_index: int) -> Path:
        return self.checkpoints / f"played-{round_index:03d}.pt"

    def _load(self, file: Path, parts: dict[str, type[Any]]) -> dict[str, Any]:
        """A checkpoint that is the one its phase wrote, and has these parts at least."""
        expected = self.progress().sums.get(file.name)
        try:
            content = file.read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if expected is not None and expected != found:
                raise ValueError(f"its bytes are not those that were saved (sha256 expected {expected}, got {found})")
            state: Any = load_tensors(content)
            if not isinstance(state, dict):
                raise ValueError(f"expected tensors by name, got {type(state).__name__}")
            state = cast(dict[str, Any], state)
            for name, kind in parts.items():
                if not isinstance(state.get(name), kind):
                    raise ValueError(f"{name}: expected {kind.__name__}, got {type(state.get(name)).__name__}")
            # The fitter's losses are NaN where none is known.
            bad = non_finite({name: part for name, part in state.items() if name != "fitter"})
            if bad is not None:
                raise ValueError(f"expected finite numbers, {bad} holds others")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{file} is missing or damaged: {error}. Restore it or start the run anew."
            ) from error
        return state

    def _old_checkpoints(self, round_index: int) -> list[Path]:
        """Those from before the round before this one: they are no longer read."""
        kinds = self._model_file, self._policy_file, self._played_file
        return [kind(old) for kind in kinds for old in range(round_index - 1)]


def run_of(file: Path) -> RunFolder | None:
    """The run folder that a dream's file belongs to; None for a file that stands for itself, as an exported one."""
    folder = RunFolder(file.parent)
    return folder if file.name == DREAM_FILE and folder.config_file.is_file() else None


def _replay(folder: Path, empty: Replay) -> Replay:
    # Shards without an index are what a first save that was killed leaves; the next save replaces them.
    return Replay.load(folder, empty.capacity) if (folder / INDEX_NAME).is_file() else empty


def _entry(values: Any) -> dict[str, Any]:
    """A line of the log, which names its round and phase."""
    entry: dict[str, Any] = cast(dict[str, Any], values) if isinstance(values, dict) else {}
    if not isinstance(entry.get("round"), int) or entry.get("phase") not in PHASES:
        raise ValueError(f"expected lines that name a round and a phase of {', '.join(PHASES)}, got {values!r:.80}")
    return entry


def _log_sum(entries: list[dict[str, Any]], progress: Progress) -> str:
    """SHA-256 of the log's entries for the phases before the one to go on with."""
    here = (progress.round, PHASES.index(progress.phase))
    finished = [entry for entry in entries if (entry["round"], PHASES.index(entry["phase"])) < here]
    return hashlib.sha256(json.dumps(finished).encode()).hexdigest()


def _save(path: Path, values: dict[str, Any]) -> None:
    # Given a file, torch would write its name into it, which here is a temporary one.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    write_atomic(path, lambda file: cast(Any, file.write_bytes(buffer.getvalue())))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(sealed(values), indent=2) + "\n")


def _differences(left: dict[str, Any], right: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two configurations differ, as ``name: left / right``."""
    lines: list[str] = []
    for name in sorted(set(left) | set(right)):
        a, b = left.get(name), right.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(cast(dict[str, Any], a), cast(dict[str, Any], b), f"{prefix}{name}.")
        elif json.dumps(a) != json.dumps(b):
            lines.append(f"{prefix}{name}: {a!r} / {b!r}")
    return lines


def evaluations(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a log that hold a real score, oldest first."""
    return [entry for entry in log if entry["phase"] == "evaluate" and "real" in entry]


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for one named stream of a run: the same names always give the same one.

    Args:
        seed: the run's.
        names: what the stream is for, words and numbers.

    Returns:
        An integer in [0, 2^31).
    """
    words = [seed] + [n if isinstance(n, int) else int.from_bytes(n.encode(), "little") for n in names]
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)
