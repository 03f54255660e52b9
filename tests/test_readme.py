"""The README's snippets do what they say."""

import re
from pathlib import Path

import pytest

from dreamgym.config import PRESETS, make_config

README = Path(__file__).parent.parent / "README.md"
SMALLER = {"200_000": "1_600", "episodes=32": "episodes=1", "num_envs=8)": "num_envs=1)", "num_envs=1024": "num_envs=8"}


def test_the_snippets_of_the_readme_run(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    assert "runs/pong" in code
    code = code.replace("runs/pong", str(smoke_run))
    for long, short in SMALLER.items():
        assert long in code
        code = code.replace(long, short)
    names: dict[str, object] = {}
    exec(code, names)
    assert {"env", "dreams", "model", "score", "simulator", "saved"} <= set(names)
    assert capsys.readouterr().out.startswith("-")


def test_the_readme_states_the_real_steps_of_every_preset() -> None:
    stated = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", README.read_text(), re.MULTILINE))
    assert stated == {preset: f"{make_config(preset).interactions:,}" for preset in PRESETS}
