"""Prompts that wait for the disk, and until when. Engine thread only; reads no file itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from openai_local.engine.cache.fetches import Fetches
from openai_local.engine.scheduler import PrefillBudget
from openai_local.engine.sequence import Sequence

logger = logging.getLogger(__name__)

# A prompt waits for the disk no longer than computing it takes, if that is known, and never less.
FETCH_TIMEOUT_S = 30.0
MIN_FETCH_TIMEOUT_S = 1.0


class DiskWaits:
    """Who waits; without ``fetches`` nobody does."""

    def __init__(
        self,
        fetches: Fetches | None,
        budget: PrefillBudget,
        timeout_s: float | None,
        fetched: Callable[[Sequence], object],
    ) -> None:
        """``timeout_s`` is a request's; ``fetched`` is called on any thread when the disk has
        read, or failed to read, what a sequence waits for."""
        self._fetches = fetches
        self._budget = budget
        self._timeout_s = timeout_s
        self._fetched = fetched
        self._until: dict[Sequence, float] = {}

    def start(self, sequence: Sequence) -> None:
        """Have it wait, if the disk holds much more of its prompt than is here."""
        fetches = self._fetches
        n_saved = fetches.start(sequence, lambda: self._fetched(sequence)) if fetches else 0
        if n_saved:
            token_s = self._budget.token_s
            most = FETCH_TIMEOUT_S if token_s is None else n_saved * token_s
            until = time.monotonic() + max(most, MIN_FETCH_TIMEOUT_S)
            if self._timeout_s is not None:
                until = min(until, sequence.submitted_s + self._timeout_s)
            self._until[sequence] = until
            sequence.fetching = True

    def end(self, sequence: Sequence) -> None:
        """It waits for the disk no more, whatever came of it."""
        if self._fetches is None:
            return
        self._fetches.keep()
        if self._until.pop(sequence, None) is not None:
            self._fetches.leave(sequence)
            sequence.fetching = False

    def end_late(self) -> None:
        """Those who have waited too long compute what the disk does not give them."""
        if self._until:
            now = time.monotonic()
            for sequence in [s for s, until in self._until.items() if until <= now]:
                logger.warning("the disk takes too long: a prompt is computed instead")
                self.end(sequence)

    def wake_in_s(self) -> float | None:
        """How long those who wait go on waiting; None if nobody does."""
        if not self._until:
            return None
        return max(0.0, min(self._until.values()) - time.monotonic())
