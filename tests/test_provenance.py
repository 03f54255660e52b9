"""Where a dream comes from: recorded by its run, told by its folder."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dreamgym.loop
import dreamgym.provenance
from dreamgym.cli import main
from dreamgym.config import PRESETS, RunConfig, make_config
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.residual import ResidualConfig
from dreamgym.provenance import code_version, provenance, train_command
from dreamgym.run_folder import RunFolder


def place_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the package lay in a folder."""
    package = folder / "dreamgym"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(dreamgym.provenance, "__file__", str(package / "provenance.py"))
    return package


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_code_is_the_checkouts_commit_and_says_if_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = place_package(tmp_path, monkeypatch)
    git(tmp_path, "init", "--quiet")
    assert code_version()["commit"] is None  # somebody else's checkout, in which the package merely lies
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_version() == {"version": dreamgym.__version__, "commit": commit}
    (tmp_path / "notes.txt").write_text("beside the package")
    assert code_version()["commit"] == commit
    (package / "__init__.py").write_text("changed = True")
    assert code_version()["commit"] == f"{commit}-changed"


@pytest.mark.parametrize("missing", ["checkout", "git"])
def test_without_a_checkout_or_without_git_there_is_a_version_and_no_commit(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_package(tmp_path, monkeypatch)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if missing == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == {"version": dreamgym.__version__, "commit": None}


def changed(config: RunConfig) -> RunConfig:
    """Another value of every kind: numbers, flags on and off, schedules, choices, and the codebook two levels down."""
    return replace(
        config,
        seed=7,
        algo="DQN",
        bf16=not config.bf16,
        codec_updates=(5_000, 3, 1),
        codec=replace(config.codec, quantizer=replace(config.codec.quantizer, decay=1e-05)),
        dynamics=replace(config.dynamics, end_head=not config.dynamics.end_head),
        dream=replace(config.dream, horizon_as="termination", stagger=not config.dream.stagger, temperature=0.5),
    )


def with_other_dynamics(config: RunConfig) -> RunConfig:
    """Dynamics of a kind that is not the preset's, with settings of their own."""
    if isinstance(config.dynamics, ResidualConfig):
        return replace(config, dynamics=ConvLSTMConfig(hidden=16, latent_skip=True))
    return replace(config, dynamics=ResidualConfig(channels=16, end_head=False))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "change", [lambda config: config, changed, with_other_dynamics], ids=["as it is", "changed", "other dynamics"]
)
def test_the_command_makes_the_same_run_again(preset: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[RunConfig, Path, str]] = []

    def record(config: RunConfig, out: Path, *, resume: bool = False, device: str = "auto") -> None:
        asked.append((config, out, device))

    monkeypatch.setattr(dreamgym.loop, "train", record)
    config = change(make_config(preset, game="SpaceInvaders"))
    command = train_command(config, "cpu").split()
    assert command[:2] == ["dreamgym", "train"]
    assert main(command[1:]) == 0
    assert asked == [(config, Path("runs/spaceinvaders"), "cpu")]
    if config == make_config(preset, game="SpaceInvaders"):
        assert len(command) == 12  # the words of --game, --preset, --seed, --device and --out, and no other option


def test_a_runs_folder_tells_what_it_took_and_what_came_of_it(smoke_run: Path) -> None:
    facts = provenance(RunFolder(smoke_run))
    config = make_config("smoke")
    assert facts == json.loads(json.dumps(facts)) | {"config": config.to_json()}
    assert (facts["algo"], facts["network"], facts["imagined_steps"]) == ("PPO", "light", 1_600)
    assert facts["version"] == dreamgym.__version__ and "threads" in facts["machine"] and facts["seconds"] > 0
    assert set(facts["matmul_gflops"]) == {"float32", "bfloat16"}
    assert [(score["interactions"], score["episodes"]) for score in facts["scores"]] == [(600, 1), (900, 2)]
    assert len(facts["random"]["episodes"]) == 2
    assert 0 <= facts["fidelity"]["code_accuracy_1"] <= 1
    assert facts["command"] == train_command(config, "cpu")


def test_what_a_run_did_not_record_is_absent(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copy(smoke_run / "config.json", tmp_path)
    facts = provenance(RunFolder(tmp_path))
    assert set(facts) == {"algo", "network", "imagined_steps", "seconds", "command", "config"}
    assert facts["command"] == train_command(make_config("smoke"))


def test_the_command_is_the_one_that_the_run_began_with(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copy(smoke_run / "config.json", tmp_path)
    folder = RunFolder(tmp_path)
    folder.save_machine({"machine": "first", "command": "of the first day", "matmul_gflops": {"float32": 1.0}})
    folder.save_machine({"machine": "second", "command": "of today", "matmul_gflops": {"float32": 1.0}})
    facts = provenance(folder)
    assert (facts["machine"], facts["command"]) == ("second", "of the first day")
    assert [entry["machine"] for entry in facts["earlier"]] == ["first"]
