"""Damaged and hostile files: refused with an error of ours, or read as they were saved."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import mutations
import numpy as np
import pytest
import torch
from mutations import MARKER, READERS, Call, Mutation, build, hostile, mutation, rezip, same, saved

from dreamgym.agent import load_parameters, read_agent
from dreamgym.archives import load_tensors
from dreamgym.checkpoint import load_dream
from dreamgym.errors import CheckpointError, ConfigError, ReplayError
from dreamgym.replay import Replay
from dreamgym.run_folder import RunFolder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every kind of file; not to be changed."""
    folder = tmp_path_factory.mktemp("pristine") / "run"
    build(folder)
    return folder


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(pristine, tmp_path / "run")


def test_mutated_files_are_refused_or_read_as_they_were_saved_within_a_gigabyte():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.mutations", "150", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tried, refused, identical, wrong = next(
        map(int, line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("all ")
    )
    assert (tried, refused + identical, wrong) == (150, 150, 0)
    # Almost all of them are damage that matters.
    assert refused > 120


def test_every_reader_reads_what_was_saved_twice_alike(pristine):
    for name, (read, patterns) in READERS.items():
        assert same(read(pristine), read(pristine)), name
        assert all(list(pristine.glob(pattern)) for pattern in patterns), name


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (lambda folder: torch.load(folder / "checkpoints" / "policy-001.pt", weights_only=False), "code"),
        (lambda folder: time.sleep(5), "longer than"),
        (lambda folder: [][0], "IndexError"),
        (lambda folder: {"policy": {}}, "other values"),
    ],
    ids=["runs code", "hangs", "a raw error", "other values"],
)
def test_what_a_reader_must_not_do_is_noticed(run, monkeypatch, read, why):
    monkeypatch.setitem(mutations.READERS, "policy-*.pt", (read, ()))
    monkeypatch.setattr(mutations, "SECONDS", 1)
    (run / "checkpoints" / "policy-001.pt").write_bytes(saved({"policy": Call(os.mkdir, str(run / MARKER))}))
    outcome = mutations._outcome(Mutation("policy-*.pt", "hostile", {}), run, {"policy": {"a": 1}})
    assert outcome.result == "wrong" and why in outcome.why


def test_a_seed_always_stands_for_the_same_mutation(pristine):
    files = {str(path.relative_to(pristine)): path.read_bytes() for path in pristine.rglob("*") if path.is_file()}
    for seed in range(30):
        assert mutation(seed, files, pristine) == mutation(seed, files, pristine)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth", "data"])
def test_a_policy_with_a_hostile_pickle_does_nothing(run, seed, member):
    file, content = run / "policy.zip", pickle.dumps(hostile(np.random.default_rng(seed), run))
    file.write_bytes(rezip(file.read_bytes(), {member: content}))
    if member == "data":
        # Stable-Baselines3's own pickles stay closed, whatever they hold.
        assert set(load_parameters(file)) >= {"policy"}
    else:
        with pytest.raises(CheckpointError, match=r"policy\.zip is damaged.*Restore it or train it again"):
            load_parameters(file)
    assert not (run / MARKER).exists()


@pytest.mark.parametrize("seed", range(12))
def test_a_pickle_that_asks_for_more_than_tensors_is_not_opened(tmp_path, seed):
    with pytest.raises(ValueError, match=r"expected tensors alone, it asks for '.*' and was not opened"):
        load_tensors(saved({"weights": torch.ones(2), "more": hostile(np.random.default_rng(seed), tmp_path)}))
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", ["dream.safetensors", "exported.safetensors"])
def test_every_bit_of_the_weights_counts(run, name):
    file = run / name
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in np.random.default_rng(0).integers(start, len(content), 40):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match=r"its contents are not those that were saved \(sha256 expected .* got"
        ):
            load_dream(file)


def test_every_bit_of_a_checkpoint_counts_even_where_its_run_kept_no_sums(run):
    (run / "progress.json").unlink()
    (run / "log.jsonl").unlink()
    file = run / "checkpoints" / "model-001.pt"
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        member = max(archive.infolist(), key=lambda each: each.file_size)
    start = content.index(b"FB", member.header_offset) + 4096
    assert RunFolder(run).load_model(1)["visits"].tolist() is not None
    for place in range(start, member.header_offset + member.file_size, member.file_size // 8):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"the bytes of {member.filename} are not those that were saved"):
            RunFolder(run).load_model(1)


@pytest.mark.parametrize("kind", ["model", "policy"])
def test_the_checkpoint_of_another_round_is_not_taken_for_this_ones(run, kind):
    shutil.copy(run / "checkpoints" / f"{kind}-000.pt", run / "checkpoints" / f"{kind}-001.pt")
    with pytest.raises(CheckpointError, match=f"{kind}-001.*its bytes are not those that were saved"):
        getattr(RunFolder(run), f"load_{kind}")(1)


def test_a_log_that_lost_a_line_is_noticed_but_not_what_an_interrupted_phase_added(run):
    folder, lines = RunFolder(run), (run / "log.jsonl").read_text().splitlines(keepends=True)
    interrupted = json.dumps({"round": 1, "phase": "evaluate"}) + "\n"
    folder.log_file.write_text("".join([*lines, interrupted]))
    assert len(folder.log()) == len(lines) + 1
    folder.log_file.write_text("".join(lines[:-1]))
    with pytest.raises(CheckpointError, match="not those that the finished phases wrote"):
        folder.log()


def test_settings_that_were_changed_by_hand_are_taken_once_their_checksum_is_removed(run):
    folder = RunFolder(run)
    values = json.loads(folder.config_file.read_text())
    folder.config_file.write_text(json.dumps(values | {"seed": 5}))
    with pytest.raises(ConfigError, match="changed on purpose, remove the field 'sha256'"):
        folder.config()
    del values["sha256"]
    folder.config_file.write_text(json.dumps(values | {"seed": 5}))
    assert folder.config().seed == 5


@pytest.mark.parametrize("name", ["../records-000000000000.npz", "/etc/passwd", ".."])
def test_an_index_cannot_name_a_file_outside_its_folder(run, name):
    index = json.loads((run / "replay" / "replay.json").read_text())
    del index["sha256"]
    index["shards"][0]["name"] = name
    (run / "replay" / "replay.json").write_text(json.dumps(index))
    with pytest.raises(ReplayError, match=r"expected the name records-000000000000\.npz, got"):
        Replay.load(run / "replay")


def test_files_from_before_there_were_checksums_are_read(run):
    for name in ("config.json", "progress.json", "machine.json", "replay/replay.json"):
        values = json.loads((run / name).read_text())
        del values["sha256"]
        values.pop("sums", None)
        (run / name).write_text(json.dumps(values))
    folder = RunFolder(run)
    assert folder.progress().round == 1 and len(folder.log()) == 7 and folder.config().preset == "smoke"
    assert folder.machine()["device"] == "cpu" and folder.load_policy(1) and len(Replay.load(folder.replay)) == 80
    older = load_dream(run / "older.safetensors")
    assert same(list(older.starts), list(load_dream(run / "exported.safetensors").starts))
    assert read_agent(run / "older.safetensors", older)[0] == folder.config()
