"""A finished run as one small file: what is in it, how close it is to the run, and what is refused."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import make_tiny_dream

import dreamgym.export
from dreamgym.agent import load_agent, read_agent
from dreamgym.checkpoint import Dream, load_dream, save_dream
from dreamgym.cli import main
from dreamgym.config import make_config
from dreamgym.errors import CheckpointError, ConfigError, MissingWeightsError, ReplayError
from dreamgym.evaluate import evaluate_real
from dreamgym.export import Export, export_dream, round_weights
from dreamgym.provenance import provenance
from dreamgym.real_env import make_real_env
from dreamgym.run_folder import RunFolder
from dreamgym.sb3 import make_sb3_env


@pytest.fixture(autouse=True)
def no_runs_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ids must not find whatever runs lie on this machine."""
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def exported(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_dream(smoke_run, tmp_path_factory.mktemp("exported") / "Pong.safetensors", starts=50)


@pytest.fixture
def copied(smoke_run: Path, tmp_path: Path) -> Path:
    """A run folder that a test may damage."""
    return shutil.copytree(smoke_run, tmp_path / "run")


def stored_types(file: Path) -> dict[str, torch.dtype]:
    with safetensors.safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118


# What is in it


def test_the_file_is_a_dream_in_half_precision_of_which_little_is_lost(exported: Export, smoke_run: Path) -> None:
    run, dream = load_dream(smoke_run), load_dream(exported.file)
    assert dream.world_model.config == run.world_model.config and dream.latent_stack == run.latent_stack
    before, after = run.world_model.state_dict(), dream.world_model.state_dict()
    types = stored_types(exported.file)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        half = types[f"world_model.{name}"] == torch.float16
        assert half == (tensor.ndim >= 2 and name not in exported.precision.float32), name
        assert torch.equal(after[name], tensor.half().float() if half else tensor), name
    held_out = RunFolder(smoke_run).load_held_out(10_000)
    frames = held_out.frames_at(np.arange(len(held_out)))
    codes, stored = run.world_model.encode(frames), dream.world_model.encode(frames)
    assert float((codes == stored).float().mean()) == pytest.approx(exported.precision.same_codes, abs=1e-6)
    assert exported.precision.same_codes >= 0.999 and exported.precision.frames == len(frames)
    assert 0 < exported.precision.prediction_change < 0.005 and exported.precision.reward_change < 0.005


def test_its_start_states_are_some_of_the_runs_with_their_context(exported: Export, smoke_run: Path) -> None:
    run, dream = load_dream(smoke_run), load_dream(exported.file)
    assert dream.starts.latents.dtype == torch.uint8 and len(dream.starts.latents) == 50
    # A smoke run's codec may give many moments the same codes: a start is known by its actions, too.
    places = [
        next(row for row, held in enumerate(zip(*run.starts, strict=True)) if all(map(torch.equal, held, kept)))
        for kept in zip(*dream.starts, strict=True)
    ]
    assert len(set(places)) == 50
    for kept, held in zip(dream.starts, run.starts, strict=True):
        assert torch.equal(kept, held[places])


def test_its_size_is_what_is_said_and_below_the_limit(exported: Export) -> None:
    assert exported.file.stat().st_size == exported.size < 2e6


def test_its_policy_acts_as_the_runs_does(exported: Export, smoke_run: Path) -> None:
    run, dream = load_dream(smoke_run), load_dream(exported.file)
    env = make_sb3_env(run, 64, device="cpu", observation="codes", seed=0)
    seen = env.reset()
    trained, shipped = read_agent(smoke_run / "dream.safetensors", run)[1], load_agent(exported.file, device="cpu")
    assert (trained.predict(seen, deterministic=True)[0] == shipped.predict(seen, deterministic=True)[0]).mean() > 0.95
    games = make_real_env(dream, 1, device="cpu", observation="codes")
    score = evaluate_real(shipped, games, 1, 0)
    games.close()
    assert -21 <= score.mean <= 21


def test_its_header_says_where_it_comes_from(exported: Export, smoke_run: Path) -> None:
    about = load_dream(exported.file).metadata
    assert about == exported.metadata
    run = load_dream(smoke_run).metadata
    assert about == {**about, **run}
    expected = json.loads(json.dumps(provenance(RunFolder(smoke_run))))
    expected["command"] += " && dreamgym export runs/pong --starts 50 --out Pong.safetensors"
    assert about == {**about, **expected}
    assert set(about) == {*run, *expected, "precision"}
    assert about["preset"] == "smoke" and about["config"] == json.loads(json.dumps(make_config("smoke").to_json()))


def test_the_same_run_gives_the_same_tensors_and_metadata(exported: Export, smoke_run: Path, tmp_path: Path) -> None:
    again = export_dream(smoke_run, tmp_path / "Pong.safetensors", starts=50)
    assert (again.metadata, again.precision, again.size) == (exported.metadata, exported.precision, exported.size)
    left, right = (safetensors.torch.load_file(file) for file in (again.file, exported.file))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_by_default_it_is_named_after_the_game_and_lies_here(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_dream(smoke_run)
    assert [path.name for path in tmp_path.iterdir()] == ["Pong.safetensors"]
    # The smoke run has fewer start states than a file has room for.
    assert len(load_dream("Pong.safetensors").starts.latents) == make_config("smoke").dream.start_states


def test_a_run_is_found_by_id(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A home of its own: beside the smoke run lie dreams of other tests, and the newest would be found.
    shutil.copytree(smoke_run, tmp_path / "home" / "pong")
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))
    assert export_dream("Dream-Pong-v0", tmp_path / "a.safetensors", starts=5).metadata["game"] == "Pong"


def test_dreams_start_from_the_file_as_from_a_run(exported: Export) -> None:
    env = gym.make("Dream-Pong-v0", checkpoint=exported.file, device="cpu", render_mode="rgb_array")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.render().shape == (384, 384, 3)


# Rounding


def test_kernels_are_rounded_and_vectors_integers_and_what_would_overflow_are_not() -> None:
    weights = {
        "kernel": torch.rand(4, 3),
        "vector": torch.rand(4),
        "count": torch.ones(2, 2, dtype=torch.int64),
        "large": torch.full((2, 2), 1e5),
    }
    stored = round_weights(weights, lambda _: 0.0, 0.0)
    assert {name: tensor.dtype == torch.float16 for name, tensor in stored.items()} == {
        "kernel": True,
        "vector": False,
        "count": False,
        "large": False,
    }
    assert torch.equal(stored["large"], weights["large"])


def test_the_kernels_that_change_most_stay_in_full_precision_and_no_more_of_them_than_needed() -> None:
    weights = {name: torch.rand(2, 2) for name in "abcd"}
    harm = {"a": 0.001, "b": 0.2, "c": 0.05, "d": 0.0}

    def change(stored: dict[str, torch.Tensor]) -> float:
        return sum(harm[name] for name, tensor in stored.items() if tensor.dtype == torch.float16)

    full = {limit: _full(round_weights(weights, change, limit)) for limit in (1.0, 0.1, 0.01, 0.0)}
    assert full == {1.0: "", 0.1: "b", 0.01: "bc", 0.0: "abc"}


def _full(stored: dict[str, torch.Tensor]) -> str:
    return "".join(name for name, tensor in stored.items() if tensor.dtype == torch.float32)


def test_a_run_whose_rounding_nothing_forgives_is_stored_in_full(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dreamgym.export, "SAME_PREDICTIONS", 0.0)
    done = export_dream(smoke_run, tmp_path / "Pong.safetensors", starts=5)
    run, kept = load_dream(smoke_run).world_model.state_dict(), load_dream(done.file).world_model.state_dict()
    assert done.metadata["precision"]["float32"] == list(done.precision.float32)
    heads = [name for name in run if name.startswith("dynamics.latent_head")]
    assert heads and all(torch.equal(run[name], kept[name]) for name in heads)


# What is refused


def test_a_file_that_would_be_too_large_is_refused_and_leaves_the_one_that_is_there(
    smoke_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "Pong.safetensors"
    file.write_bytes(b"a good one")
    with pytest.raises(ConfigError, match=r"at most 0.5 MB, got 1\.\d MB \(195,073 parameters.*--preset laptop"):
        export_dream(smoke_run, file, megabytes=0.5)
    assert file.read_bytes() == b"a good one"


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(copied: Path) -> None:
    progress = RunFolder(copied).progress()
    progress.round = 1
    (copied / "progress.json").write_text(json.dumps(asdict(progress)))
    with pytest.raises(ConfigError, match=r"round 2 of 2. Go on with: dreamgym train --out .*run --resume"):
        export_dream(copied)


@pytest.mark.parametrize("name", ["Pong.zip", "Pong"])
def test_a_file_name_that_nobody_would_read_is_refused(name: str, smoke_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ending in \.safetensors"):
        export_dream(smoke_run, tmp_path / name)


def test_the_runs_own_file_is_not_overwritten(copied: Path) -> None:
    before = (copied / "dream.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="not the run's own"):
        export_dream(copied, copied / "dream.safetensors")
    assert (copied / "dream.safetensors").read_bytes() == before


def test_no_start_states_are_refused(smoke_run: Path) -> None:
    with pytest.raises(ConfigError, match="starts: expected at least 1"):
        export_dream(smoke_run, starts=0)


def test_a_dream_that_belongs_to_no_run_is_refused(exported: Export, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a run folder.*Pong\.safetensors"):
        export_dream(exported.file, tmp_path / "again.safetensors")


def test_a_run_without_a_policy_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "policy.zip").unlink()
    with pytest.raises(MissingWeightsError, match="no agent"):
        export_dream(copied, tmp_path / "Pong.safetensors")


def test_a_run_without_real_experience_is_refused(copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "held_out")
    assert export_dream(copied, tmp_path / "Pong.safetensors", starts=5).precision.frames == 900  # the replay's
    shutil.rmtree(copied / "replay")
    with pytest.raises(ReplayError, match="held_out or replay"):
        export_dream(copied, tmp_path / "Pong.safetensors")


@pytest.mark.parametrize("keep", [100, -100], ids=["header", "weights"])
def test_a_damaged_file_is_refused_and_named(keep: int, exported: Export, tmp_path: Path) -> None:
    file = tmp_path / "Pong.safetensors"
    file.write_bytes(exported.file.read_bytes()[:keep])
    for load in (load_dream, load_agent):
        with pytest.raises(CheckpointError, match=r"Pong\.safetensors is damaged"):
            load(file)


# Shipped with the package


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder of shipped dreams, an empty one."""
    folder = tmp_path / "package" / "weights"
    folder.mkdir(parents=True)
    monkeypatch.setattr(dreamgym.checkpoint, "SHIPPED", folder)
    return folder


def test_what_is_shipped_is_found_by_id_by_everything(
    exported: Export, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Path(shutil.copy(exported.file, weights))
    assert gym.make("Dream-Pong-v0", device="cpu").reset(seed=0)[0].shape == (128, 6, 6)
    assert dreamgym.load_agent("Dream-Pong-v0", device="cpu").observation_space.shape == (36, 4)
    assert main(["info", "Dream-Pong-v0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["file"], facts["start_states"]) == (str(shipped), 50)
    assert main(["evaluate", "Dream-Pong-v0", "--episodes", "1", "--dream-episodes", "4", "--device", "cpu"]) == 0
    assert f"PPO of {shipped}, seed 0: preset smoke" in capsys.readouterr().out
    out = tmp_path / "strip.png"
    assert main(["compare", "Dream-Pong-v0", "--out", str(out), "--steps", "3", "--device", "cpu"]) == 0
    assert out.is_file()


def test_a_shipped_dream_of_another_game_is_not_taken_for_this_one(
    exported: Export, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(exported.file, weights / "Boxing.safetensors")
    with pytest.raises(ConfigError, match=r"dream of Boxing.*Boxing\.safetensors is one of Pong: use Dream-Pong-v0"):
        gym.make("Dream-Boxing-v0")
    for command in ("info", "evaluate"):
        assert main([command, "Dream-Boxing-v0"]) == 2
        assert "expected a dream of Boxing" in capsys.readouterr().err


# The commands


def test_the_command_says_what_it_wrote_and_what_rounding_changed(
    smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dreams" / "Pong.safetensors"
    assert main(["export", str(smoke_run), "--out", str(file), "--starts", "9", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"{file}: {file.stat().st_size / 1e6:.2f} MB, at most 10\n" in printed
    assert "of the codes of" in printed and "dreamgym export runs/pong --starts 9 --out Pong.safetensors" in printed
    assert "device: cpu" in printed
    assert "not recorded" not in printed or "commit" in printed


def test_the_command_says_what_the_run_did_not_record(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "machine.json").unlink()
    file = tmp_path / "Pong.safetensors"
    assert main(["export", str(copied), "--out", str(file), "--starts", "9", "--device", "cpu"]) == 0
    assert "not recorded by the run: commit, machine" in capsys.readouterr().out


def test_info_shows_where_a_file_comes_from(exported: Export, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(exported.file)]) == 0
    printed = capsys.readouterr().out
    assert "config" not in printed
    for name in ("preset", "seed", "version", "machine", "matmul_gflops", "imagined_steps", "precision", "fidelity"):
        assert f"\n{name} " in printed
    assert "dreamgym train --game Pong --preset smoke --seed 0 --device cpu --out runs/pong &&\n" in printed
    assert "600 real steps: " in printed and "900 real steps: " in printed
    assert max(len(line) for line in printed.splitlines() if str(exported.file) not in line) <= 120


def test_info_counts_the_parameters_of_the_policy_in_the_file(
    exported: Export, smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[int] = []
    for place in (exported.file, smoke_run):
        assert main(["info", str(place), "--json"]) == 0
        counts.append(json.loads(capsys.readouterr().out)["policy"])
    assert counts[0] == counts[1] > 0


def test_a_file_without_a_policy_is_a_dream_that_evaluate_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dream = make_tiny_dream()
    file = save_dream(tmp_path / "Pong.safetensors", replace(dream, policy={}))
    assert isinstance(load_dream(file), Dream)
    assert main(["evaluate", str(file), "--device", "cpu"]) == 2
    assert "comes with no agent" in capsys.readouterr().err
