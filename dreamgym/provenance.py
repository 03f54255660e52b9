"""Where a dream comes from: the code and machine that made it, what it took, its scores, how to make it again."""

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from dreamgym import __version__
from dreamgym.config import PRESETS, RunConfig, make_config
from dreamgym.errors import CheckpointError
from dreamgym.hardware import describe_machine
from dreamgym.models.codecs import VQVAEConfig
from dreamgym.run_folder import MACHINE_FIELDS, RunFolder, evaluations


def code_version() -> dict[str, Any]:
    """The package's ``version``, and the ``commit`` that it runs from where it lies in a checkout.

    The commit is None for an installed package, and ends in ``-changed`` where files of the package differ from it.
    """
    here = Path(__file__).parent
    # An environment may lie in somebody else's checkout, whose commit says nothing about this package.
    if _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"version": __version__, "commit": None}
    commit = _git(here, "rev-parse", "HEAD")
    if commit is not None and _git(here, "status", "--porcelain", "--", "*.py") != "":
        commit += "-changed"
    return {"version": __version__, "commit": commit}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def train_command(config: RunConfig, device: str = "auto") -> str:
    """The command that runs a configuration: its preset, and an option for everything in which it differs from that.

    Args:
        config: the run's.
        device: where networks compute.
    """
    if type(config.codec) is not VQVAEConfig:
        # The command line does not know it.
        return f"In Python, with {type(config.codec).__name__} in dreamgym.world_model.CODECS: dreamgym.loop.train"
    preset = config.preset if config.preset in PRESETS else "laptop"
    default = replace(make_config(preset), game=config.game, seed=config.seed, preset=config.preset)
    words = ["dreamgym", "train", "--game", config.game, "--preset", preset, "--seed", str(config.seed)]
    kind = type(config.dynamics)
    if kind is not type(default.dynamics):
        default = replace(default, dynamics=kind())
        words += ["--dynamics.kind", kind.__name__]
    words += _options(default.to_json(), config.to_json())
    words += [] if device == "auto" else ["--device", device]
    return shlex.join([*words, "--out", run_name(config.game)])


def run_name(game: str) -> str:
    """Where the commands that make a dream again put its run, wherever it was: "Pong" -> "runs/pong"."""
    return f"runs/{file_name(game).lower()}"


def file_name(game: str) -> str:
    """A game's name as that of a file: "Pong" stays, "some/Walk-v0" -> "some-Walk-v0"."""
    return game.replace("/", "-").replace(":", "-")


def _options(default: Mapping[str, Any], config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The command line's words for what differs between two nested configurations."""
    words: list[str] = []
    for name, value in config.items():
        option = name.replace("_", "-")
        if isinstance(value, dict):
            words += _options(default[name], cast("dict[str, Any]", value), f"{prefix}{option}.")
        elif value == default[name]:
            continue
        elif isinstance(value, bool):
            words.append(f"--{prefix}{option if value else f'no-{option}'}")
        else:
            parts = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
            words += [f"--{prefix}{option}", *map(str, parts)]
    return words


def machine_record(config: RunConfig, device: torch.device, rates: Mapping[str, float]) -> dict[str, Any]:
    """What a run writes down when it begins, for :meth:`RunFolder.save_machine`: its code, machine and command.

    Args:
        config: the run's.
        device: where networks compute.
        rates: of :func:`dreamgym.hardware.matmul_rates`.
    """
    return {
        **code_version(),
        "device": str(device),
        "machine": describe_machine(device),
        "matmul_gflops": dict(rates),
        "command": train_command(config, str(device)),
    }


def provenance(folder: RunFolder) -> dict[str, Any]:
    """What a run's folder knows about its dream beyond what the dream's own file says. Plain JSON.

    Args:
        folder: of a run, finished or not.

    Returns:
        ``algo`` and ``network`` of the policy; ``data``: imported experience that it began from;
        ``imagined_steps``; ``seconds`` of the finished phases; ``version`` and
        ``commit`` of the code; ``device``, ``machine`` and ``matmul_gflops``, with those of before under ``earlier``
        where a resumed run changed them; ``random``: the random policy's score; ``scores``: the real score after each
        round; ``fidelity`` after the last one; ``command``: what makes the run again; ``config``: all its settings.
        What the run did not record is absent.

    Raises:
        ConfigError: there is no run.
        CheckpointError: one of its files is damaged.
    """
    try:
        return _facts(folder)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{folder.path}: {folder.log_file.name} or {folder.machine_file.name} is damaged: expected what train "
            f"writes, got {type(error).__name__} {error}. Restore them from a copy."
        ) from error


def _facts(folder: RunFolder) -> dict[str, Any]:
    config, progress, log, machine = folder.config(), folder.progress(), folder.log(), folder.machine()
    evaluated = evaluations(log)
    interactions = {entry["round"]: entry["interactions"] for entry in log if entry["phase"] == "collect"}
    first = machine.get("earlier", [machine])[0]
    facts: dict[str, Any] = {
        "algo": config.algo,
        "network": config.network,
        # What the run began from instead of playing it, as it was recorded then.
        "data": next((entry["data"] for entry in log if "data" in entry), None),
        "imagined_steps": progress.imagined_steps,
        "seconds": progress.seconds,
        **{name: machine[name] for name in MACHINE_FIELDS if name in machine and name != "command"},
        "random": next((entry["random"] for entry in evaluated if "random" in entry), None),
        "scores": [_round_score(entry, interactions) for entry in evaluated],
        "fidelity": _fidelity(evaluated[-1]) if evaluated else {},
        # As the run began: presets may have changed since.
        "command": first.get("command") or train_command(config),
        "config": config.to_json(),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def _round_score(entry: Mapping[str, Any], interactions: Mapping[int, int]) -> dict[str, Any]:
    """One round's score without its single episodes."""
    real = entry["real"]
    numbers = {name: real[name] for name in ("mean", "low", "high")}
    return {"interactions": interactions.get(entry["round"]), **numbers, "episodes": len(real["episodes"])}


def _fidelity(entry: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers of a round's fidelity."""
    return {name: value for name, value in entry.get("fidelity", {}).items() if not isinstance(value, list)}
