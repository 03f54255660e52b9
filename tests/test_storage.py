"""Full disks, folders that cannot be written and clocks that are wrong: an error that says what to do, and a run."""

import builtins
import errno
import os
import re
import time

import pytest
import torch
from test_loop import Killed, at_call, contents, leave_out_pictures, run, tiny

from dreamgym.cli import main
from dreamgym.errors import StorageError
from dreamgym.run_folder import RunFolder
from dreamgym.run_lock import LOCK_FILE


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    leave_out_pictures(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        return contents(run(tiny(), tmp_path_factory.mktemp("runs") / "undisturbed"))


def failing(number, function, code):
    """A function whose call of that number ends as the system's would with this error."""
    calls = []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise OSError(code, os.strerror(code), "somewhere")
        return function(*args, **kwargs)

    return fail


@pytest.mark.parametrize("number", [3, 9, 17])
@pytest.mark.parametrize(
    ("code", "what"),
    [(errno.ENOSPC, r"expected room .* MiB free\). Make room"), (errno.EROFS, "expected a folder that can be written")],
    ids=["full", "read-only"],
)
def test_a_write_that_fails_ends_the_run_with_the_way_out_and_loses_nothing(tmp_path, undisturbed, number, code, what):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", failing(number, os.fsync, code))
        with pytest.raises(StorageError, match=what) as caught:
            run(tiny(), folder)
    assert f"dreamgym train --out {folder} --resume" in str(caught.value)
    assert not [file for file in folder.rglob(".*") if not file.name.endswith(".part")]
    torch.manual_seed(99)
    assert contents(run(tiny(), folder, resume=True)) == undisturbed


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    """The system's own limit: no injection."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"expected room for the run's files, got File too large"):
            run(tiny(), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert RunFolder(run(tiny(rounds=2), tmp_path / "run", resume=True)).progress().round == 2


def test_a_folder_that_cannot_be_written_is_refused_before_anything_begins(tmp_path, monkeypatch, capsys):
    opened = builtins.open
    (tmp_path / "run").mkdir()

    def closed(file, mode="r", *args, **kwargs):
        if str(file).endswith(LOCK_FILE):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr("io.open", closed)
    assert main(["train", "--preset", "smoke", "--device", "cpu", "--out", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert re.search(r"run\.lock: expected a folder that can be written, got Permission denied\. Make it", printed)
    assert "--resume --device cpu" in printed and "Traceback" not in printed
    assert list((tmp_path / "run").iterdir()) == []


def test_a_clock_that_is_set_back_in_the_midst_changes_nothing(tmp_path, undisturbed):
    folder, now = tmp_path / "run", time.time()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "finish_phase", at_call(3, RunFolder.finish_phase))
        run(tiny(), folder)
    with pytest.MonkeyPatch.context() as patch:
        # Every look at the clock is an hour before the last.
        patch.setattr(time, "time", iter(range(int(now), 0, -3600)).__next__)
        patch.setattr(time, "time_ns", iter(range(int(now) * 10**9, 0, -3600 * 10**9)).__next__)
        run(tiny(), folder, resume=True)
    assert contents(folder) == undisturbed
    assert all(entry["seconds"] >= 0 for entry in RunFolder(folder).log())


def test_a_clock_before_there_were_zips_is_an_error_that_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(time, "localtime", lambda *seconds: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    with pytest.raises(StorageError, match=r"expected a year from 1980 on, got 1970.*Set the clock"):
        run(tiny(), folder)
    assert not (folder / "config.json").exists()


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    folder.replay.mkdir()
    remains = [folder.checkpoints / ".model-000-4711.pt", folder.path / ".config-1.json", folder.replay / ".a.npz.part"]
    kept = [folder.path / ".gitignore", folder.checkpoints / "model-000.pt", folder.path / "notes-12.txt"]
    for file in remains + kept:
        file.write_bytes(b"half")
    folder.remove_remains()
    assert [file.exists() for file in remains + kept] == [False] * 3 + [True] * 3
