"""What commands print: to a terminal, a narrow or dumb one, without colours, to a pipe, to another program."""

import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dreamgym import terminal
from dreamgym.checkpoint import save_dream
from dreamgym.cli import COMMANDS, main
from dreamgym.terminal import command_line, print_json

NARROW = 20
BAR = """
import time
from dreamgym.terminal import progress_bar
for _ in progress_bar(range(30), name="a rather long name", unit="update"):
    time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def no_runs_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DREAMGYM_HOME", str(tmp_path / "home"))


def in_terminal(*arguments: str, columns: int = 80, stdout: bool = True, **environment: str) -> tuple[int, str, str]:
    """Run Python with stderr, and perhaps stdout, on a terminal: its status, and what the terminal and a pipe got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "TERM")}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout else subprocess.PIPE,
        stderr=theirs,
        env=kept | {"TERM": "xterm"} | environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    piped, _ = process.communicate(timeout=60)
    return process.returncode, shown.decode(), (piped or b"").decode()


# Progress bars


def test_a_bar_in_a_narrow_terminal_stays_in_its_line_and_goes_when_it_is_done():
    status, shown, _ = in_terminal("-c", BAR, columns=NARROW)
    states = [state for state in shown.split("\r") if state.strip()]
    assert status == 0
    assert len(states) > 1
    assert max(map(len, states)) <= NARROW
    assert "\n" not in shown
    assert shown.split("\r")[-2:] == [shown.split("\r")[-2], ""] and not shown.split("\r")[-2].strip()


@pytest.mark.parametrize("where", ["a pipe", "a dumb terminal"])
def test_a_bar_is_not_drawn_where_its_line_cannot_be_drawn_anew(where: str):
    if where == "a pipe":
        assert subprocess.run([sys.executable, "-c", BAR], capture_output=True, check=True).stderr == b""
    else:
        assert in_terminal("-c", BAR, TERM="dumb")[:2] == (0, "")


def test_evaluate_in_a_narrow_terminal_draws_bars_that_fit_and_its_json_stays_clean(smoke_run: Path):
    run = ["-m", "dreamgym", "evaluate", str(smoke_run), "--episodes", "1", "--dream-episodes", "8", "--device", "cpu"]
    status, shown, piped = in_terminal(*run, "--json", columns=NARROW, stdout=False)
    assert status == 0
    assert parsed(piped)["preset"] == "smoke"
    # The line that names the device is the terminal's to break.
    states = [state for state in re.split(r"[\r\n]", shown) if "device:" not in state]
    assert max(map(len, states)) <= NARROW


# Colours and signs


def test_help_has_colours_on_a_terminal_and_none_where_no_color_is_set():
    assert "\x1b[" in in_terminal("-m", "dreamgym", "info", "--help")[1]
    status, shown, _ = in_terminal("-m", "dreamgym", "info", "--help", NO_COLOR="1")
    assert (status, "\x1b" in shown) == (0, False)


def test_an_error_in_a_file_has_no_colours_though_stdout_is_a_terminal(tmp_path: Path):
    code = f"import sys; from dreamgym.cli import main; sys.stderr = open({str(tmp_path / 'err')!r}, 'w'); main()"
    status, _, _ = in_terminal("-c", code, "info", "--presett", "x")
    printed = (tmp_path / "err").read_text()
    assert status == 2
    assert "--preset" in printed and "\x1b" not in printed


def test_help_in_a_narrow_terminal_keeps_words_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(NARROW))
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "moments" in capsys.readouterr().out
    assert os.environ["COLUMNS"] == str(NARROW)


def test_signs_that_the_outputs_encoding_lacks_are_no_error(tiny_dream, tmp_path):
    save_dream(tmp_path / "päng", tiny_dream)
    for arguments in (["list", str(tmp_path)], ["list", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "dreamgym", *arguments],
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert main(["list", str(tmp_path)]) == 0


# Pipes


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("--help",), ("info", "--help")])
def test_output_that_nobody_reads_any_more_ends_the_command_quietly(arguments: tuple[str, ...], unbuffered: str):
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "dreamgym", *arguments],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


# JSON


def parsed(text: str) -> dict[str, Any]:
    """The only JSON document in a text, by the standard: NaN is none."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("info", "RUN"), "game"),
        (("info", "--preset", "smoke"), "policy"),
        (("list", "FOLDER"), "dreams"),
        (("compare", "RUN", "--out", "OUT/strip.png", "--steps", "3", "--device", "cpu"), "same_codes"),
        (("compare", "RUN", "RUN", "--out", "OUT/runs.csv"), "scores"),
    ],
)
def test_with_json_stdout_is_one_document_and_nothing_else(
    arguments: tuple[str, ...], field: str, smoke_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    places = {"RUN": str(smoke_run), "FOLDER": str(smoke_run.parent)}
    given = [places.get(word, word.replace("OUT", str(tmp_path))) for word in arguments]
    assert main([*given, "--json"]) == 0
    assert field in parsed(capfd.readouterr().out)


def test_numbers_that_json_does_not_know_are_null(capsys):
    print_json({"a": math.nan, "b": [1.5, -math.inf], "c": (2, {"d": math.inf})})
    assert parsed(capsys.readouterr().out) == {"a": None, "b": [1.5, None], "c": [2, {"d": None}]}


# Completion


def completed(*words: str, script: str) -> list[str]:
    """What bash offers for the last of the words."""
    given = f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}"
    asked = [script, given, "_tyro_dreamgym", 'echo "${COMPREPLY[@]}"']
    return subprocess.run(["bash", "-c", "\n".join(asked)], check=True, capture_output=True, text=True).stdout.split()


def test_bash_completes_commands_options_and_files(capsys, tmp_path, monkeypatch):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pong.safetensors").touch()
    assert completed("dreamgym", "ev", script=script) == ["evaluate"]
    assert "--dream.horizon" in completed("dreamgym", "train", "--dream.h", script=script)
    assert completed("dreamgym", "info", "po", script=script) == ["pong.safetensors"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_names_every_command_and_its_options(shell: str, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in script] == []
    assert "--episodes" in script


# Shells


def test_commands_to_go_on_with_are_quoted_as_the_systems_shell_reads_them(monkeypatch):
    words = ["train", "my runs/pong"]
    assert command_line(words) == "train 'my runs/pong'"
    monkeypatch.setattr(terminal.sys, "platform", "win32")
    assert command_line(["train", r"C:\my runs\pong"]) == r'train "C:\my runs\pong"'
