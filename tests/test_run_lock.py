"""One process at a time on a run folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dreamgym.run_lock
from dreamgym.cli import main
from dreamgym.errors import RunInUseError
from dreamgym.run_lock import LOCK_FILE, locked

HOLD = """
import sys, time
from pathlib import Path
from dreamgym.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process, which holds the folder by now."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_second_process_is_refused_with_the_firsts_number_and_host_and_exit_status_2(run, capsys):
    process = holder(run)
    try:
        with pytest.raises(RunInUseError, match=f"process {process.pid} on {socket.gethostname()}"):
            locked(run).__enter__()
        assert main(["train", "--preset", "smoke", "--device", "cpu", "--out", str(run)]) == 2
        assert f"process {process.pid} on" in capsys.readouterr().err
        assert not (run / "config.json").exists()
    finally:
        process.kill()
        process.communicate()


def test_a_killed_process_holds_nothing_and_whoever_follows_says_so(run, caplog):
    process = holder(run)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads((run / LOCK_FILE).read_text())["pid"] == process.pid
    with locked(run):
        assert json.loads((run / LOCK_FILE).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert f"process {process.pid} on {socket.gethostname()} ended in its midst" in caplog.text
    assert (run / LOCK_FILE).read_bytes() == b""


def test_two_threads_are_two_and_a_released_lock_is_free(run):
    refused = []

    def try_it():
        try:
            with locked(run):
                pass
        except RunInUseError as error:
            refused.append(str(error))

    with locked(run):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    try_it()
    assert len(refused) == 1


def test_an_error_within_releases_the_lock(run):
    with pytest.raises(ZeroDivisionError), locked(run):
        raise ZeroDivisionError
    with locked(run):
        pass


def a_process_that_ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("pid", "host", "free"),
    [
        (a_process_that_ended, socket.gethostname(), True),
        (os.getpid, socket.gethostname(), True),
        (os.getppid, socket.gethostname(), False),
        (os.getppid, "another-host", False),
    ],
    ids=["ended", "this one's number", "at work", "another host's"],
)
def test_where_the_file_system_has_no_locks_what_is_written_decides(run, monkeypatch, pid, host, free):
    def no_locks(file):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(dreamgym.run_lock, "_acquire", no_locks)
    run.mkdir()
    (run / LOCK_FILE).write_text(json.dumps({"pid": pid(), "host": host}))
    if free:
        with locked(run):
            assert json.loads((run / LOCK_FILE).read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(RunInUseError, match=f"on {host} works on.*If it has ended, remove"):
            locked(run).__enter__()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "host": 1}', b"\xff\x00"])
def test_a_lock_file_that_says_nothing_is_no_obstacle(run, content):
    run.mkdir()
    (run / LOCK_FILE).write_bytes(content)
    with locked(run):
        pass
