"""One timer, for the earliest time that anybody wants. Its owner's lock guards it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress


class Alarm:
    """Calls ``ring`` at the time that was set, on a thread that keeps no process alive."""

    def __init__(self, name: str, ring: Callable[[], None]) -> None:
        self._name = name
        self._ring = ring
        self._timer: threading.Timer | None = None
        self._at = math.inf

    def set(self, at: float) -> None:
        """Ring at ``at`` of the monotonic clock. After an earlier ring the owner sets the next."""
        if at >= self._at:
            return
        self.cancel()
        timer = threading.Timer(max(0.0, at - time.monotonic()), self._ring)
        timer.name, timer.daemon = self._name, True
        with suppress(RuntimeError):  # no thread can be started any more
            timer.start()
            self._timer, self._at = timer, at

    def rang(self) -> None:
        """For the owner, when it is called."""
        self._timer, self._at = None, math.inf

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.rang()
