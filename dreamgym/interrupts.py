"""Ctrl-C and SIGTERM in long work: both end it the same way, and neither is lost."""

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""What ends work: Ctrl-C, what ``kill`` and schedulers send, and a terminal that is closed (SIGBREAK on Windows)."""

_AGAIN = 0.1  # seconds until a signal that got lost is sent again


class Interrupted(KeyboardInterrupt):
    """Work that a signal ended.

    Args:
        message: what to say about going on.
        number: the signal's.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        """Keep the signal."""
        super().__init__(message)
        self.number = int(number)


@contextmanager
def stops_on_signals() -> Generator[None]:
    """Turn the signals of :data:`STOPS` into :class:`Interrupted`, raised wherever the work is.

    Signals that somebody else handles or ignores (``nohup``, a shell's background) stay as they are. Python drops what
    is raised in a finaliser or a callback of the collector; a signal that arrives there is sent once more. Outside the
    main thread, where Python takes no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in STOPS if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
    before, hook = {number: signal.signal(number, _stop) for number in ours}, sys.unraisablehook

    def repeat(lost: Any) -> None:
        if isinstance(lost.exc_value, Interrupted):
            # Not from within the hook: what is raised here is dropped, too.
            timer = threading.Timer(_AGAIN, signal.raise_signal, (lost.exc_value.number,))
            timer.daemon = True
            timer.start()
        else:
            hook(lost)

    sys.unraisablehook = repeat
    try:
        with unmasked():
            yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unmasked() -> Generator[None]:
    """Raise the :class:`Interrupted` behind an error, where somebody turned it into one.

    Before Python 3.12 a class body makes a RuntimeError of what is raised while it names its parts, and libraries are
    imported in the middle of work.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Interrupted):
            cause = cause.__cause__
        if cause is None:
            raise
        raise Interrupted(str(cause), cause.number) from error


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number=number)
