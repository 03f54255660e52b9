"""Files and names that work on Windows and macOS too, as far as that shows on Linux."""

import ast
import fcntl
import os
import socket
from pathlib import Path

import pytest
from conftest import make_tiny_dream

import dreamgym
from dreamgym import run_lock
from dreamgym.checkpoint import dreamgym_home, load_dream, run_folder_name, save_dream, write_text
from dreamgym.json_files import read_text
from dreamgym.shards import replace_file

ROOT = Path(dreamgym.__file__).parents[1]
UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def unfit(names: list[Path]) -> list[Path]:
    """Names that Windows does not take, or that it or macOS takes for one another."""
    seen: set[str] = set()
    bad: list[Path] = []
    for path in names:
        name, folded = path.name, str(path).lower()
        refused = set(name) & set('<>:"|?*\\') or name.endswith((".", " ")) or path.stem.lower() in RESERVED
        if refused or folded in seen:
            bad.append(path)
        seen.add(folded)
    return bad


def test_a_run_has_no_name_that_another_system_refuses(smoke_run):
    assert unfit([path.relative_to(smoke_run) for path in smoke_run.rglob("*")]) == []


def test_the_project_has_no_name_that_another_system_refuses():
    folders = ("dreamgym", "tests", "docs", "agents", "notebooks")
    assert unfit([path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*")]) == []


def test_modules_that_only_unix_has_are_imported_where_it_was_asked_which_system_this_is():
    for file in (ROOT / "dreamgym").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & UNIX, file


@pytest.mark.parametrize("write", [lambda path: write_text(path, "text"), lambda path: replace_file(path, b"text")])
def test_files_are_flushed_by_descriptors_that_may_write(write, tmp_path, monkeypatch):
    """Windows flushes no others."""
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE))
    write(tmp_path / "file.txt")
    assert flushed and os.O_RDONLY not in flushed
    assert (tmp_path / "file.txt").read_bytes() == b"text"


def test_a_loaded_dream_holds_its_file_no_longer(tmp_path):
    """Windows replaces no file that is mapped; elsewhere a dream would change with what is written over it."""
    file = save_dream(tmp_path, make_tiny_dream())
    dream, size = load_dream(file), file.stat().st_size
    before = dream.starts.latents.clone()
    with file.open("r+b") as opened:
        opened.write(bytes(size))
    assert (dream.starts.latents == before).all()


def test_text_is_written_as_it_is_whatever_the_systems_encoding(tmp_path):
    write_text(tmp_path / "file.txt", "ä\n")
    assert (tmp_path / "file.txt").read_bytes() == "ä\n".encode()
    assert read_text(tmp_path / "file.txt") == "ä\n"


def test_whether_a_process_has_ended_is_not_asked_on_windows_where_that_would_be_ctrl_c(monkeypatch):
    sent = []
    monkeypatch.setattr(run_lock.os, "kill", lambda *given: sent.append(given))
    monkeypatch.setattr(run_lock.sys, "platform", "win32")
    assert run_lock._has_ended(os.getpid() + 1, socket.gethostname()) is False
    assert sent == []


@pytest.mark.parametrize(
    ("game", "folder"), [("Pong", "pong"), ("module:Walk-v0", "module-walk-v0"), ("some/Walk-v0", "some/walk-v0")]
)
def test_a_default_folder_has_a_name_that_every_system_takes(game, folder):
    assert run_folder_name(game) == folder


def test_home_may_begin_with_a_tilde_and_an_empty_one_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("DREAMGYM_HOME", "~/dreams")
    assert dreamgym_home() == tmp_path / "dreams"
    monkeypatch.setenv("DREAMGYM_HOME", "")
    assert dreamgym_home() == Path("runs")
