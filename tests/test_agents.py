"""The recipes: each trains in the dream and then scores in the real game."""

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamgym.export import export_dream

AGENTS = Path(__file__).parent.parent / "agents"
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"steps": 200, "n_envs": 8},
    "a2c": {"steps": 200, "n_envs": 8},
    "dqn": {"steps": 96, "n_envs": 16, "buffer": 1_000},
    "recurrent_ppo": {"steps": 50, "n_envs": 2},
    "qrdqn": {"steps": 96, "n_envs": 16, "buffer": 1_000, "network": "light"},
    "trpo": {"steps": 200, "n_envs": 8, "network": "light"},
    "ars": {"steps": 200, "n_envs": 8, "directions": 2},
    "cleanrl_ppo": {"steps": 200, "n_envs": 8, "network": "light"},
}
LINES = {"cleanrl_ppo": 220}
"""The one that holds a whole algorithm is longer."""


def load(name: str) -> Any:
    """The script as a module; it must not run by being imported."""
    spec = importlib.util.spec_from_file_location(f"agent_{name}", AGENTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_tested() -> None:
    # The table of all recipes has tests of its own.
    assert {path.stem for path in AGENTS.glob("*.py")} - {"table"} == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_recipe_trains_in_the_dream_and_scores_in_the_real_game(
    name: str, smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = load(name)
    score = agent.main(agent.Args(dream=str(smoke_run), episodes=1, device="cpu", **SETTINGS[name]))
    assert len(score.episodes) == 1
    assert -21 <= score.mean <= 21
    printed = capsys.readouterr().out
    assert " on cpu" in printed
    assert f"real score {score.mean:.1f}" in printed
    assert "random -" in printed
    assert f"95 % {score.low:.1f} to {score.high:.1f}, 1 episodes" in printed
    steps, minutes = re.findall(r"; ([\d,]+) imagined steps in (\d+\.\d) min", printed)[0]
    assert int(steps.replace(",", "")) >= SETTINGS[name]["steps"] and float(minutes) < 10


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cleanrls_loop_keeps_everything_on_the_device(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = load("cleanrl_ppo")
    score = agent.main(agent.Args(dream=str(smoke_run), episodes=1, device="cuda", steps=200, n_envs=8))
    assert len(score.episodes) == 1
    assert " on cuda" in capsys.readouterr().out


def test_ppo_trains_for_minutes_in_an_exported_file(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = export_dream(smoke_run, tmp_path / "Pong.safetensors", starts=20).file
    agent = load("ppo")
    settings: dict[str, Any] = {"network": "light", "n_envs": 8, "episodes": 1, "device": "cpu"}
    began = time.monotonic()
    agent.main(agent.Args(dream=str(file), minutes=0.02, **settings))
    assert time.monotonic() - began < 60
    printed = capsys.readouterr().out
    assert "up to 1,000,000,000 imagined steps, up to 0.02 min" in printed
    steps = int(re.findall(r"; ([\d,]+) imagined steps", printed)[0].replace(",", ""))
    assert 0 < steps < 100_000


@pytest.mark.parametrize("name", SETTINGS)
def test_a_recipe_is_short_and_its_help_explains_every_setting(name: str) -> None:
    script = AGENTS / f"{name}.py"
    assert len(script.read_text().splitlines()) <= LINES.get(name, 80)
    shown = subprocess.run([sys.executable, str(script), "--help"], check=True, capture_output=True, text=True).stdout
    for option in ("--dream", "--steps", "--minutes", "--seed", "--network"):
        assert f"{option} " in shown
