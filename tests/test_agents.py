"""The recipes: each trains in the dream and then scores in the real game."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AGENTS = Path(__file__).parent.parent / "agents"
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"steps": 200, "n_envs": 8},
    "a2c": {"steps": 200, "n_envs": 8},
    "dqn": {"steps": 200, "n_envs": 8, "buffer": 1_000},
    "recurrent_ppo": {"steps": 50, "n_envs": 2},
}


def load(name: str) -> Any:
    """The script as a module; it must not run by being imported."""
    spec = importlib.util.spec_from_file_location(f"agent_{name}", AGENTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in AGENTS.glob("*.py")} == set(SETTINGS)


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


@pytest.mark.parametrize("name", SETTINGS)
def test_a_recipe_is_short_and_its_help_explains_every_setting(name: str) -> None:
    script = AGENTS / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 80
    shown = subprocess.run([sys.executable, str(script), "--help"], check=True, capture_output=True, text=True).stdout
    for option in ("--dream", "--steps", "--seed"):
        assert f"{option} " in shown
