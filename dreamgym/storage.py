"""Where a run's files cannot be written: what a full disk or a read-only folder means, and how to go on."""

import errno
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dreamgym.errors import DreamgymError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FIRST_YEAR = 1980


@contextmanager
def storage_faults(folder: Path, resume: str) -> Generator[None]:
    """Say what an error of the operating system means for a run, and how the run goes on.

    Args:
        folder: the run's.
        resume: the command that goes on with it.

    Raises:
        StorageError: in place of any ``OSError`` that is not ours already.
    """
    try:
        yield
    except (DreamgymError, BrokenPipeError):
        # What is written to a pipe are no files of the run.
        raise
    except OSError as error:
        raise StorageError(
            f"{_explain(error, folder)}, and go on with: {resume}. What was finished is kept."
        ) from error


def _explain(error: OSError, folder: Path) -> str:
    place = error.filename or folder
    got = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        return f"{place}: expected room for the run's files, got {got} ({_free(folder)}). Make room"
    if error.errno in _CLOSED:
        return f"{place}: expected a folder that can be written, got {got}. Make it writable, or copy the run elsewhere"
    return f"{place}: expected to read and write the run's files, got {got}. Mend that"


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB free"
    except OSError:
        return "free space unknown"


def check_clock() -> None:
    """See that the clock tells a year that files can be dated by: zips, as policies are kept in, know none before 1980.

    Durations are measured by a clock that cannot be set back, so that any later time does.

    Raises:
        StorageError: it does not.
    """
    year = time.localtime().tm_year
    if year < _FIRST_YEAR:
        raise StorageError(
            f"clock: expected a year from {_FIRST_YEAR} on, got {year}, in which no zip can be written. Set the clock, "
            "and go on with --resume. What was finished is kept."
        )
