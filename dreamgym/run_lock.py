"""One process at a time on a run folder: a lock of the operating system, with who holds it written inside."""

import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from dreamgym.errors import RunInUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE = "run.lock"
"""In the run folder; it stays there, empty while nobody works on the run."""

_FAR = 2**30  # Windows locks bytes against reading, too: one beyond what is written
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_log = logging.getLogger("dreamgym")


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other processes from going on with a run.

    The lock is the operating system's and ends with the process, however that ends; what a killed one left written is
    overwritten. On a file system without locks, what is written decides: a process of this host that has ended is
    followed, one of another host is taken to be at work.

    Args:
        folder: the run's; made where there is none.

    Raises:
        RunInUseError: another process, or another thread of this one, holds it; the message names process and host.
        OSError: the folder cannot be made or the file not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    # Not "w": whoever comes second must not erase who came first.
    with path.open("a+b") as file:
        before, otherwise = _holder(file), ""
        try:
            free = _acquire(file)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            free = before is None or _has_ended(*before)
            otherwise = f" If it has ended, remove {path}: locks do not work here, so nobody can tell."
        if not free:
            who = "another process" if before is None else f"process {before[0]} on {before[1]}"
            raise RunInUseError(
                f"{folder}: expected a run that nobody works on, got one that {who} works on. Wait for it, stop it "
                f"there, or choose another --out.{otherwise}"
            )
        if before is not None:
            _log.warning("%s: process %d on %s ended in its midst; this one goes on from there.", folder, *before)
        _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        try:
            yield
        finally:
            _write(file, "")
            with suppress(OSError):
                _release(file)


def _holder(file: BinaryIO) -> tuple[int, str] | None:
    """Process and host that a lock file names; None where it names none."""
    file.seek(0)
    try:
        values: Any = json.loads(file.read(4096))
        fields = cast("dict[str, Any]", values)
        return int(fields["pid"]), str(fields["host"])
    except (ValueError, KeyError, TypeError):
        return None


def _write(file: BinaryIO, text: str) -> None:
    file.truncate(0)
    file.write(text.encode())
    file.flush()


def _has_ended(pid: int, host: str) -> bool:
    """Whether a process of this host runs no more; where it has this one's number, it is an earlier one."""
    # On Windows os.kill does not ask: its signal 0 is Ctrl-C.
    if host != socket.gethostname() or sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return pid == os.getpid()


if sys.platform == "win32":

    def _acquire(file: BinaryIO) -> bool:
        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _release(file: BinaryIO) -> None:
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:

    def _acquire(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
