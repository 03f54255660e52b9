"""What is printed suits who reads it: a terminal, narrow or dumb or without colours, a pipe, another program."""

import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from tqdm import tqdm

_DRAWN = "╭─│•"
"""Some of what tyro's help is drawn with."""

_LEAST_COLUMNS = 40


def shows_bars(wanted: bool = True) -> bool:
    """Whether progress bars are to be shown: to a person, at a terminal that can draw a line anew.

    Args:
        wanted: whether anybody asked for them.
    """
    # Without a console, as under pythonw, there is no stderr.
    return wanted and bool(cast(Any, sys.stderr)) and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def progress_bar(
    what: Iterable[Any] | None = None, *, name: str, unit: str, total: int | None = None, wanted: bool = True
) -> "tqdm[Any]":
    """A bar on stderr, as wide as the terminal, that goes when it is done; none where :func:`shows_bars` says so.

    Args:
        what: is gone through; None for a bar that is updated by hand.
        name: stands before it.
        unit: what is counted.
        total: how many there are, where ``what`` does not say.
        wanted: whether anybody asked for it.
    """
    return tqdm(
        what, desc=name, unit=unit, total=total, leave=False, dynamic_ncols=True, disable=not shows_bars(wanted)
    )


def prepare_output() -> None:
    """Colours only on terminals, and not where ``NO_COLOR`` is set; signs that an encoding lacks are spelt out."""
    import tyro

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = tyro._experimental_options  # pyright: ignore[reportPrivateUsage]
    # tyro looks at stdout alone, whichever it writes to.
    if os.environ.get("NO_COLOR") or not (sys.stdout.isatty() and sys.stderr.isatty()):
        options["ansi_codes"] = False
    try:
        _DRAWN.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        options["utf8_boxes"] = False


@contextmanager
def wide_enough() -> Generator[None]:
    """Lay help out for 40 columns at least: with fewer, tyro puts one letter in a line."""
    before, columns = os.environ.get("COLUMNS"), shutil.get_terminal_size().columns
    os.environ["COLUMNS"] = str(max(columns, _LEAST_COLUMNS))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def let_go_of_stdout() -> None:
    """Let what is left of the output go nowhere, once nobody reads it: else Python complains when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(values: Any) -> None:
    """Print one JSON document in a line; numbers that JSON does not know, NaN and infinities, are null."""
    print(json.dumps(_known(values), allow_nan=False))


def _known(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _known(value) for name, value in cast("dict[str, Any]", values).items()}
    if isinstance(values, list | tuple):
        return [_known(value) for value in cast("Sequence[Any]", values)]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def command_line(words: Sequence[str]) -> str:
    """Words as one types them into this system's shell: quotes as the shell knows them."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
