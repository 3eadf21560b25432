"""A command that is told to end frees what it has and gives the cursor back; told again, it just
ends."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Terminated(BaseException):
    """A SIGTERM came."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises Terminated, a second one ends the process at once. Where it is not
    caught, the process ends by the signal, as whoever sent it expects."""
    of_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if not of_main or before is not signal.SIG_DFL:  # ignored, or the business of another
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except Terminated:
        end_by(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def end_by(number: signal.Signals) -> None:
    """End the process by a signal, without what Python does at its exit."""
    with suppress(OSError):
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def end_at_once() -> None:
    """The next SIGINT does not interrupt the process, but ends it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated
