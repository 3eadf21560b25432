"""How many threads compute a step: fewer while other work wants the same cores. No llama.cpp here.

The threads of a step wait for each other actively, hundreds of times in each. Where one of them is
not running, since another process has its core, all of them wait for its next turn: two engines of
two threads on two cores made 0.3 tokens a second each, where of one thread each made 130.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from openai_local.engine.machine import ROOT, allowed_cpus

logger = logging.getLogger(__name__)

WINDOW_S = 0.5
# Of a window, in which steps were computed for most of it.
BUSY_SHARE = 0.8
# A thread that waits for a core for so much of the time shares it with another that never rests:
# alone it is 0.5; beside an event loop and its clients under load it was at most 0.08.
CROWDED_SHARE = 0.3
FREE_CORE = 0.7
# How long there are fewer at least; each time that more were in vain twice as long, up to the most.
HOLD_S, MAX_HOLD_S = 2.0, 60.0
SOON_S = 10.0
_JIFFY_S = 1 / (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds since their beginning: that each thread of this process ran and waited for a core,
    by its id; and that the cores it may use had nothing to do, together."""

    threads: Mapping[str, tuple[float, float]]
    idle_s: float


def sample(root: Path = ROOT) -> Sample | None:
    """From Linux's scheduler; None where it does not tell."""
    threads = {}
    try:
        for task in os.listdir(root / "proc/self/task"):
            with suppress(OSError):  # it has just ended
                text = (root / f"proc/self/task/{task}/schedstat").read_text()
                ran, waited, _ = text.split()
                threads[task] = (int(ran) / 1e9, int(waited) / 1e9)
        cpus = {f"cpu{number}" for number in allowed_cpus()}
        lines = (root / "proc/stat").read_text().splitlines()
        # cpu0 user nice system idle iowait …, in jiffies.
        idle = sum(
            int(words[4]) + int(words[5]) for words in map(str.split, lines) if words[0] in cpus
        )
    except (OSError, ValueError, IndexError):  # no Linux, or one that keeps it to itself
        return None
    return Sample(threads, idle * _JIFFY_S)


class Threads:
    """``n`` of at most ``n_max``, and ``n_batch`` for prompts. Engine thread only."""

    def __init__(
        self,
        n_max: int,
        n_batch_max: int,
        look: Callable[[], Sample | None] = sample,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n = self.n_max = n_max
        self._n_batch_max = n_batch_max
        self._look = look
        self._clock = clock
        self._before: Sample | None = None
        self._began = self._ended = self._busy_s = 0.0
        self._hold_s = HOLD_S
        self._not_before = 0.0  # may there be more again
        self._raised_at = -MAX_HOLD_S

    @property
    def n_batch(self) -> int:
        return max(1, self._n_batch_max - (self.n_max - self.n))

    def begin(self) -> None:
        """A step is going to be computed."""
        if self.n_max == 1:
            return
        now = self._clock()
        if self._before is None or now - self._ended > WINDOW_S / 10:  # there was nothing to do
            self._open(now)
        self._ended = now

    def end(self) -> None:
        """It is computed."""
        if self._before is None:
            return
        now = self._clock()
        self._busy_s += now - self._ended
        self._ended = now
        took_s = now - self._began
        if took_s < WINDOW_S:
            return
        before, busy_s = self._before, self._busy_s
        after = self._open(now)
        if after is not None and busy_s >= BUSY_SHARE * took_s:
            self._judge(before, after, took_s, now)

    def _open(self, now: float) -> Sample | None:
        self._before, self._began, self._busy_s = self._look(), now, 0.0
        return self._before

    def _judge(self, before: Sample, after: Sample, took_s: float, now: float) -> None:
        waits = []  # of the threads that had something to do all the time
        for thread, (ran, waited) in after.threads.items():
            ran_before, waited_before = before.threads.get(thread, (0.0, 0.0))
            ran, waited = (ran - ran_before) / took_s, (waited - waited_before) / took_s
            if ran + waited >= BUSY_SHARE:
                waits.append(waited)
        crowded = [wait for wait in waits if wait >= CROWDED_SHARE]
        if crowded and self.n > 1:
            # Others of this process, such as a second model's, give way themselves.
            self._lower(sum(crowded) * self.n / max(self.n, len(waits)), now)
        elif not crowded and self.n < self.n_max and now >= self._not_before:
            self._raise((after.idle_s - before.idle_s) / took_s)

    def _lower(self, n_lacking: float, now: float) -> None:
        self.n = max(1, self.n - max(1, round(n_lacking)))
        # What came back at once had only rested since we gave way.
        in_vain = now - self._raised_at < SOON_S
        self._hold_s = min(2 * self._hold_s, MAX_HOLD_S) if in_vain else HOLD_S
        self._not_before = now + self._hold_s
        text = "other work wants the cores: computing with %d threads of %d"
        logger.info(text, self.n, self.n_max)

    def _raise(self, n_idle: float) -> None:
        if n_idle >= FREE_CORE:
            self.n = min(self.n_max, self.n + int(n_idle + 1 - FREE_CORE))
            self._raised_at = self._clock()
            logger.info("cores are free: computing with %d threads of %d", self.n, self.n_max)
