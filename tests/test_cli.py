"""The command line: what it prints, where, and how it ends."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import make_tiny_dream
from gymnasium import spaces

import dreamgym.evaluate
import dreamgym.fidelity
import dreamgym.loop
from dreamgym.checkpoint import save_dream
from dreamgym.cli import COMMANDS, main
from dreamgym.config import RunConfig, make_config
from dreamgym.evaluate import Score
from dreamgym.models.dynamics import ConvLSTMConfig
from dreamgym.models.multiscale import MultiscaleConfig
from dreamgym.run_folder import RunFolder

FIGURES = {"encoder": 2_012_160, "decoder": 2_076_132, "codebook": 4_096, "dynamics": 6_552_547, "policy": 1_303_571}


@pytest.fixture(autouse=True)
def no_runs_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ids must not find whatever runs lie on this machine."""
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))


def output_of(*arguments: str) -> str:
    """What a fresh interpreter prints; it must succeed."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


# Help


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in ("train", "evaluate", "compare", "report", "export", "play", "info"))


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "train",
            (
                "--game",
                "--preset",
                "--seed",
                "--out",
                "--resume",
                "--algo",
                "--device",
                "--dream.horizon",
                "--dynamics.kind",
            ),
        ),
        ("evaluate", ("RUN_OR_ID", "--episodes", "--seed", "--json")),
        ("compare", ("RUN_OR_ID", "--out")),
        ("report", ("RUN_OR_ID", "--out", "--seed", "--device")),
        ("export", ("RUN_OR_ID", "--out", "--starts", "--megabytes", "--device")),
        ("push", ("RUN_OR_ID", "OWNER/NAME", "--out", "--licence", "--branch", "--private")),
        ("pull", ("OWNER/NAME", "--revision", "--out", "--megabytes", "--json")),
        ("data", ("export", "import")),
        ("play", ("RUN_OR_ID",)),
        ("info", ("RUN_OR_ID", "--preset", "--actions", "--frames", "--json")),
    ],
)
def test_help_of_a_command_explains_its_options(
    command: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: dreamgym {command}" in printed
    assert [option for option in options if option not in printed] == []


@pytest.mark.parametrize(("preset", "rounds"), [("smoke", 2), ("paper", 15)])
def test_help_of_train_shows_the_named_presets_settings(
    preset: str, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", preset, "--help"])
    assert re.search(rf"--rounds INT[^-]*\(default: {rounds}\)", capsys.readouterr().out)


def test_importing_the_command_line_does_not_load_torch() -> None:
    assert output_of("-c", "import sys, dreamgym.cli; print('torch' in sys.modules)") == "False\n"


def test_the_module_is_the_same_program() -> None:
    assert output_of("-m", "dreamgym", "--version") == f"dreamgym {dreamgym.__version__}\n"


# Errors of the user's


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "usage: dreamgym"),
        (("trian",), "did you mean train?"),
        (("nonsense",), "usage: dreamgym"),
        (("train", "--preset", "huge", "--out", "run"), "expected one of smoke, quick, laptop, gpu, paper"),
        (
            ("train", "--dynamics.kind", "LSTM", "--out", "run"),
            "expected ConvLSTMConfig or ResidualConfig or MultiscaleConfig, got 'LSTM'",
        ),
        (("train", "--preset", "smoke", "--rounds", "0", "--out", "run"), "rounds: expected at least 1, got 0"),
        (("train", "--preset", "smoke", "--game", "Pnog", "--out", "run"), "did you mean Pong"),
        (("train", "--preset", "smoke", "--device", "tpu", "--out", "run"), "device: expected 'auto'"),
        (("evaluate", "Dream-Zaxxon-v0"), "dreamgym train --game Zaxxon"),
        (("evaluate", "Dream-Pnog-v0"), "did you mean Pong"),
        (("evaluate", "no/such/run"), "No dream"),
        (("evaluate", "Dream-Pong-v0", "--episodes", "0"), "episodes: expected at least 1"),
        (("evaluate", "Dream-Pong-v0", "--fidelity", "--policies", "2"), "policies: expected at least 3, got 2"),
        (("compare", "Dream-Pong-v0", "--out", "film.avi"), ".mp4, .gif or .png"),
        (("evaluate", "Dream-Pong-v0", "--seed", "-1"), "seed: expected at least 0, got -1"),
        (("compare", "Dream-Pong-v0", "--out", "film.gif", "--seed", "-1"), "seed: expected at least 0, got -1"),
        (("play", "Dream-Pong-v0", "--fps", "0"), "fps: expected at least 1, got 0"),
        (("play", "Dream-Zaxxon-v0"), "dreamgym train --game Zaxxon"),
        (("info",), "RUN_OR_ID or --preset"),
        (("info", "run", "--preset", "paper"), "not both"),
        (("info", "run", "--actions", "4"), "go with --preset"),
        (("info", "--preset", "paper", "--actions", "0"), "num_actions: expected at least 1"),
    ],
)
def test_a_users_error_is_one_message_and_status_2(
    arguments: tuple[str, ...],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "run").exists()


def test_an_option_that_does_not_exist_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["info", "--presett", "paper"])
    assert end.value.code == 2
    assert "--preset" in capsys.readouterr().err


# train


def test_train_refuses_a_folder_with_a_run_and_settings_that_are_not_the_runs(
    smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--preset", "smoke", "--out", str(smoke_run)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "--preset", "quick", "--resume", "--out", str(smoke_run)]) == 2
    assert "begun with 'smoke'" in capsys.readouterr().err
    assert main(["train", "--resume", "--rounds", "1", "--out", str(smoke_run)]) == 2
    assert "rounds: 2 / 1" in capsys.readouterr().err


def test_train_passes_on_what_was_asked_and_resumes_with_the_runs_own_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[RunConfig, Path, bool, str]] = []

    def record(config: RunConfig, out: Path, *, resume: bool = False, device: str = "auto") -> None:
        asked.append((config, out, resume, device))
        RunFolder(out).begin(config, resume)

    monkeypatch.setattr(dreamgym.loop, "train", record)
    out = str(tmp_path / "run")
    first = "--game breakout --preset smoke --seed 7 --algo DQN --device cpu --dream.horizon 12 --codec-updates 5 3"
    assert main(["train", *first.split(), "--out", out]) == 0
    assert main(["train", "--resume", "--out", out]) == 0
    (config, folder, resume, device), again = asked
    assert (config.game, config.preset, config.seed, config.algo) == ("Breakout", "smoke", 7, "DQN")
    assert (config.dream.horizon, config.codec_updates) == (12, (5, 3))
    assert (folder, resume, device) == (Path(out), False, "cpu")
    assert again == (config, Path(out), True, "auto")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The settings of every run that was asked for; none is run, but its folder is begun."""
    configs: list[RunConfig] = []

    def record(config: RunConfig, out: Path, *, resume: bool = False, device: str = "auto") -> None:
        RunFolder(out).begin(config, resume)
        configs.append(config)

    monkeypatch.setattr(dreamgym.loop, "train", record)
    return configs


def test_settings_of_the_dynamics_are_options_of_the_presets_kind(asked: list[RunConfig], tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert (
        main(["train", "--preset", "laptop", "--dynamics.channels", "32", "--dynamics.no-end-head", "--out", out]) == 0
    )
    assert main(["train", "--resume", "--out", out]) == 0
    assert main(["train", "--preset", "smoke", "--dynamics.hidden", "4", "--out", f"{out}2"]) == 0
    expected = dataclasses.replace(make_config("laptop").dynamics, channels=32, end_head=False)
    assert isinstance(expected, MultiscaleConfig)
    assert [config.dynamics for config in asked[:2]] == [expected, expected]
    assert asked[2].dynamics == dataclasses.replace(make_config("smoke").dynamics, hidden=4)
    assert isinstance(asked[2].dynamics, ConvLSTMConfig)


def test_the_kind_of_the_dynamics_is_an_option_of_its_own(
    asked: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    command = ["train", "--preset", "laptop", "--dynamics.kind", "ConvLSTMConfig", "--dynamics.hidden", "16"]
    assert main([*command, "--out", out]) == 0
    assert main(["train", "--resume", "--out", out]) == 0
    assert asked == [dataclasses.replace(make_config("laptop"), dynamics=ConvLSTMConfig(hidden=16))] * 2
    assert main(["train", "--resume", "--dynamics.kind", "MultiscaleConfig", "--out", out]) == 2
    assert "dynamics.kind: 'ConvLSTMConfig' / 'MultiscaleConfig'" in capsys.readouterr().err
    same = ["train", "--preset", "laptop", "--dynamics.kind", "MultiscaleConfig", "--out", f"{out}2"]
    assert main(same) == 0
    assert asked[-1] == make_config("laptop")


def test_train_without_a_folder_goes_where_ids_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Path, bool]] = []

    def record(config: RunConfig, out: Path, *, resume: bool = False, device: str = "auto") -> None:
        asked.append((config.preset, out, resume))
        RunFolder(out).begin(config, resume)

    monkeypatch.setattr(dreamgym.loop, "train", record)
    assert main(["train", "--game", "space_invaders", "--preset", "smoke"]) == 0
    assert main(["train", "--game", "space_invaders", "--resume"]) == 0
    folder = tmp_path / "home" / "spaceinvaders"
    assert asked == [("smoke", folder, False), ("smoke", folder, True)]


def test_ctrl_c_in_train_says_how_to_go_on_and_is_status_130(tmp_path: Path) -> None:
    out = tmp_path / "a run"
    command = [sys.executable, "-m", "dreamgym", "train", "--preset", "smoke", "--device", "cpu", "--out", str(out)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert "device cpu" in run.stdout.readline()
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert f"dreamgym train --out '{out}' --resume" in errors
    assert "Traceback" not in errors
    assert RunFolder(out).config().preset == "smoke"


def test_ctrl_c_elsewhere_is_status_130_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "info", COMMANDS["info"]._replace(make=interrupted))
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_resuming_a_finished_run_says_so_and_shows_its_table(
    smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "--device", "cpu", "--out", str(smoke_run)]) == 0
    printed = capsys.readouterr().out
    assert "is finished" in printed
    assert "random" in printed


# info


def test_info_prints_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--preset", "paper", "--actions", "18", "--frames", "4", "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert {name: facts[name] for name in FIGURES} == FIGURES
    assert "device" in printed.err


def test_info_for_one_frame_prints_the_other_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--preset", "paper", "--actions", "6", "--frames", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["encoder"], facts["decoder"], facts["dynamics"]) == (2_010_624, 2_074_593, 6_243_427)


def test_info_of_a_run_says_what_it_is_and_what_it_scored(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(smoke_run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["game"], facts["preset"], facts["actions"], facts["interactions"]) == ("Pong", "smoke", 6, 900)
    assert facts["policy"] > 0
    assert len(facts["score"]["episodes"]) == 2
    assert main(["info", str(smoke_run)]) == 0
    printed = capsys.readouterr().out
    assert f"{facts['decoder']:,}" in printed
    assert "2 episodes)" in printed


def test_info_by_id_finds_the_run_at_home(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DREAMGYM_HOME", str(tiny_run.parent))
    assert main(["info", "Dream-Pong-v0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert Path(facts["file"]).parent == tiny_run
    assert "policy" not in facts


# evaluate


def test_evaluate_json_holds_real_dream_and_fidelity_and_nothing_else_is_printed(
    smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--episodes", "1", "--dream-episodes", "8", "--seed", "3", "--device", "cpu", "--json"]
    assert main(["evaluate", str(smoke_run), *arguments]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    for part, count in (("real", 1), ("dream", 8)):
        score = result[part]
        assert set(score) >= {"mean", "std", "low", "high", "episodes"}
        assert len(score["episodes"]) == count
        assert score["low"] <= score["mean"] <= score["high"]
        assert score["mean"] == pytest.approx(np.mean(score["episodes"]))
    assert -21 <= result["real"]["mean"] <= 21
    assert 0 <= result["fidelity"]["code_accuracy_1"] <= 1
    assert (result["seed"], result["device"]) == (3, "cpu")
    assert (result["preset"], result["run_seed"], result["interactions"]) == ("smoke", 0, 900)
    assert result["parameters"] > 0 and result["seconds"] > 0 and "threads" in result["machine"]
    assert "device: cpu" in printed.err


def test_evaluate_for_people_names_both_scores_and_the_device(
    smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(smoke_run), "--episodes", "1", "--dream-episodes", "8", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("device: cpu", "real score", "dream return", "code_accuracy_1"))


def test_evaluate_measures_fidelity_thoroughly_and_ranks_policies_when_asked(
    smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fidelity", "--policies", "3", "--episodes", "1", "--dream-episodes", "8", "--device", "cpu"]
    assert main(["evaluate", str(smoke_run), *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]["episodes"] == 1
    assert found["held_out"]["steps"] == found["ranking"]["policies"][0]["real"]["lengths"][0]
    assert found["fidelity"]["windows_uniform"] == 512
    assert found["fidelity"]["code_nll_1"] > 0
    assert [policy["name"] for policy in found["ranking"]["policies"]] == ["0% random", "50% random", "100% random"]
    assert all(policy["dream_per_step"] for policy in found["ranking"]["policies"])


def test_evaluate_for_people_explains_the_fidelity_and_leaves_the_ranking_out_when_asked(
    smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fidelity", "--policies", "0", "--episodes", "1", "--dream-episodes", "8", "--device", "cpu"]
    assert main(["evaluate", str(smoke_run), *arguments]) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("real score", "never fitted to", "recall, steps 0-10", ">= 0.90"))
    assert "code_accuracy_1" not in printed and "ranking" not in printed


def test_evaluate_measures_and_plays_the_dream_at_the_runs_temperature(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(smoke_run, tmp_path / "run")
    config = RunFolder(run).config()
    colder = dataclasses.replace(config, dream=dataclasses.replace(config.dream, temperature=0.25))
    RunFolder(run).config_file.write_text(json.dumps(colder.to_json()))
    drawn_at: dict[str, float] = {}

    def measured(*args: Any, temperature: float, **settings: Any) -> dict[str, float]:
        drawn_at["fidelity"] = temperature
        return {}

    def dreamt(policy: Any, env: Any, *args: Any, **settings: Any) -> Any:
        drawn_at["dream"] = env.simulator.temperature
        return Score.of([0.0], [1])

    monkeypatch.setattr(dreamgym.fidelity, "fidelity", measured)
    monkeypatch.setattr(dreamgym.evaluate, "evaluate_dream", dreamt)
    monkeypatch.setattr(dreamgym.evaluate, "evaluate_real", lambda *args, **settings: Score.of([0.0], [1]))
    assert main(["evaluate", str(run), "--episodes", "1", "--device", "cpu", "--json"]) == 0
    assert drawn_at == {"fidelity": 0.25, "dream": 0.25}


def test_evaluate_needs_an_agent(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_run)]) == 2
    assert "no agent" in capsys.readouterr().err


# compare


@pytest.mark.parametrize("name", ["side.mp4", "side.gif", "strip.png"])
def test_compare_writes_a_video_or_a_strip(
    name: str, smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures" / name
    assert main(["compare", str(smoke_run), "--out", str(out), "--steps", "6", "--device", "cpu"]) == 0
    assert out.stat().st_size > 1_000
    printed = capsys.readouterr().out
    assert "device: cpu" in printed
    assert "6 steps" in printed


def test_compare_plays_at_random_where_a_dream_has_no_run(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "strip.png"
    assert main(["compare", str(tiny_run), "--out", str(out), "--steps", "3", "--device", "cpu"]) == 0
    assert out.is_file()


# play


def test_play_opens_a_window_and_ends_when_it_is_closed(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    polls: list[float] = []

    def close_after_three() -> list[Any]:
        polls.append(time.monotonic())
        return [pygame.event.Event(pygame.QUIT)] if len(polls) == 3 else []

    monkeypatch.setattr(pygame.event, "get", close_after_three)
    assert main(["play", str(tiny_run), "--device", "cpu", "--fps", "200"]) == 0
    assert len(polls) == 3
    printed = capsys.readouterr().out
    assert "d = RIGHT, a = LEFT, d+space = RIGHTFIRE" in printed
    assert "device: cpu" in printed


class Lamp(gym.Env[Any, Any]):
    """A picture, six actions, and no keys of its own."""

    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = spaces.Discrete(6)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation_space.low, {}

    def step(self, action: Any) -> Any:
        return self.observation_space.high, 0.0, False, False, {}


def test_play_without_a_display_ends_at_once(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setattr("pygame.display.get_driver", lambda: "offscreen")
    assert main(["play", str(tiny_run), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "dreamgym compare" in said and "--web" in said


def test_play_gives_digits_to_games_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    dream = make_tiny_dream()
    dream.world_model.config = dataclasses.replace(dream.world_model.config, game="Lamp-v0")
    save_dream(tmp_path, dream)
    monkeypatch.setitem(gym.registry, "Lamp-v0", gym.envs.registration.EnvSpec("Lamp-v0", entry_point=Lamp))
    monkeypatch.setattr("dreamgym.play_window.play_in_window", lambda session, fps, zoom: session.tick())
    assert main(["play", str(tmp_path), "--device", "cpu"]) == 0
    assert "keys: 0 = action 0, 1 = action 1" in capsys.readouterr().out


def test_play_refuses_continuous_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    dream = make_tiny_dream()
    dream.world_model.config = dataclasses.replace(dream.world_model.config, continuous=True)
    dream.starts = dream.starts._replace(actions=torch.zeros(40, 8, 6))
    save_dream(tmp_path, dream)
    assert main(["play", str(tmp_path), "--device", "cpu"]) == 2
    assert "discrete actions" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "extra"), [((), "play"), (("--web",), "web")])
def test_play_without_its_library_says_how_to_install_it(
    options: tuple[str, ...],
    extra: str,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["play", str(tiny_run), *options]) == 2
    assert f"pip install 'dreamgym[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--port", "80"), "--web"), (("--no-browser",), "--web"), (("--web", "--port", "70000"), "0 to 65535")],
)
def test_play_refuses_options_that_cannot_be(
    options: tuple[str, ...], said: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", str(tiny_run), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_run_folder_that_is_a_file_is_a_fault_without_a_traceback(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(["train", "--preset", "smoke", "--device", "cpu", "--out", str(tmp_path / "taken")]) == 1
    assert "taken" in capsys.readouterr().err
