"""A load that is going: whether to give it up, and how far it has come. It does not know of what.

Written by the thread that loads, read by anybody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

# A load that takes no longer says nothing between its beginning and its end.
LOG_EVERY_S = 5.0


class Loading:
    """Called, it says whether to give the load up."""

    def __init__(self, name: str, stopping: Callable[[], bool] = lambda: False) -> None:
        self.fraction = 0.0
        self._name = name
        self._stopping = stopping
        self._logged_at = time.monotonic()

    def __call__(self) -> bool:
        return self._stopping()

    def report(self, fraction: float) -> None:
        """From 0 to 1; never less than before."""
        self.fraction = max(self.fraction, min(fraction, 1.0))
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            logger.info("loading %s: %.0f %%", self._name, 100 * self.fraction)
