"""What is built from this tree works where the tree is not: the wheel, and the dreams that lie inside it."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dreamgym.agent import load_agent
from dreamgym.checkpoint import load_dream
from dreamgym.export import MEGABYTES, export_dream

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "dreamgym" / "weights").glob("*.safetensors"))

FIRST_DREAM = """
import json, socket, sys


def refuse(*arguments, **settings):
    raise OSError("the network is not to be used")


socket.socket.connect = socket.getaddrinfo = refuse

import gymnasium as gym
import dreamgym

env = gym.make("Dream-Pong-v0", observation="codes", render_mode="rgb_array")
observation, _ = env.reset(seed=0)
observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
picture = env.render()
model = dreamgym.load_agent("Dream-Pong-v0")
action, _ = model.predict(observation)
ours = {module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "dreamgym"}
print(json.dumps({"picture": picture.shape, "levels": len(set(picture.ravel().tolist())), "action": int(action),
                  "files": sorted(ours), "reward": reward}))
"""


@pytest.fixture(scope="module")
def tree(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, with the smoke run's dream as the one that is shipped."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "dreamgym", folder / "dreamgym", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    export_dream(smoke_run, folder / "dreamgym" / "weights" / "Pong.safetensors")
    return folder


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", tree / "dist", tree)
    (built,) = (tree / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_the_dreams_in_it_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "dreamgym/weights/Pong.safetensors",
        "dreamgym/py.typed",
        "dreamgym/play.html",
        "dreamgym/export.py",
    } <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dreamgym"}


def test_the_source_distribution_holds_the_dreams_too(tree: Path) -> None:
    build = "from setuptools import build_meta; build_meta.build_sdist('sdist')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (built,) = (tree / "sdist").glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"dreamgym/weights/Pong.safetensors", "dreamgym/export.py", "pyproject.toml", "README.md"} <= names


def test_an_installed_wheel_dreams_without_the_repository_without_runs_and_without_network(
    wheel: Path, tmp_path: Path
) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    surroundings = {**os.environ, "PYTHONPATH": str(site), "DREAMGYM_HOME": str(tmp_path / "no runs")}
    command = [sys.executable, "-c", FIRST_DREAM]
    done = subprocess.run(command, cwd=elsewhere, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["picture"] == [384, 384, 3] and seen["levels"] > 1
    assert 0 <= seen["action"] < 6
    assert all(Path(file).is_relative_to(site) for file in seen["files"])


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_dream_in_this_package_is_small_and_says_where_it_comes_from(file: Path) -> None:
    assert file.stat().st_size <= MEGABYTES * 1e6
    dream = load_dream(file)
    assert dream.world_model.config.game == file.stem
    assert len(dream.starts.latents) >= 200
    about = dream.metadata
    known = {name for name, value in about.items() if value is not None}
    assert known >= {
        "preset",
        "seed",
        "commit",
        "interactions",
        "imagined_steps",
        "machine",
        "matmul_gflops",
        "seconds",
    }
    assert known >= {"score", "random", "scores", "fidelity", "command", "precision"} and about["finished"]
    assert len(about["score"]["episodes"]) >= 32
    assert load_agent(file, device="cpu").observation_space.shape is not None
