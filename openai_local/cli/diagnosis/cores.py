"""Cores: how many this process has, and who else is on them.

The threads of a decode wait for each other, spinning, many times a token. A thread whose core is
taken holds up all others: decodes become ten to a hundred times slower, not a little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from openai_local.cli.diagnosis.finding import Finding
from openai_local.config import Settings
from openai_local.engine.machine import allowed_cpus, cpu_quota, physical_cores

SAMPLE_S = 0.5
STAT = Path("/proc/stat")


def look_at_cores(settings: Settings, has_gpu: bool) -> Iterator[Finding]:
    quota = cpu_quota()
    yield Finding("cores", "ok", describe(quota))
    threads = settings.n_threads or physical_cores()
    yield from of_threads(threads, physical_cores(), quota)
    if has_gpu:
        return
    busy = busy_cores()
    if busy is not None:
        yield of_others(busy, threads, len(allowed_cpus()))
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        text = "OMP_WAIT_POLICY=passive: a single stream takes more than twice the time"
        yield Finding("cores", "slow", text, "unset it")


def describe(quota: float | None) -> str:
    total, allowed = os.cpu_count() or 1, len(allowed_cpus())
    parts = [f"{total} logical in the machine, {allowed} for this process"]
    if quota is not None:
        parts.append(f"a quota of {quota:g}")
    return f"{', '.join(parts)}: {physical_cores()} physical to use"


def of_threads(n_threads: int, n_cores: int, quota: float | None) -> Iterator[Finding]:
    if quota is not None and n_threads > quota:
        text = f"{n_threads} threads for a quota of {quota:g} CPUs: they stop each other"
        yield Finding("threads", "slow", text, f"set n_threads to {max(1, int(quota))}")
    elif n_threads > n_cores:
        text = f"{n_threads} threads on {n_cores} cores wait for each other"
        yield Finding("threads", "slow", text, f"leave n_threads out, or set it to {n_cores}")
    else:
        yield Finding("threads", "ok", f"{n_threads} for {n_cores} cores")


def of_others(busy: float, n_threads: int, n_cpus: int) -> Finding:
    free = n_cpus - busy
    if busy > 0.25 and free < n_threads - 0.1:
        text = f"others take {busy:.1f} of {n_cpus} CPUs now; {n_threads} threads have not enough"
        advice = f"stop them, or set n_threads to {max(1, int(free))}"
        return Finding("other processes", "slow", text, advice)
    return Finding("other processes", "ok", f"they take {busy:.1f} of {n_cpus} CPUs now")


def busy_cores(stat: Path = STAT, sample_s: float = SAMPLE_S) -> float | None:
    """How many of this process's CPUs were taken during a moment; None where it is not told."""
    before = _times(stat)
    time.sleep(sample_s)
    after = _times(stat)
    shares = []
    for cpu, (idle, total) in after.items():
        idle_before, total_before = before.get(cpu, (idle, total))
        if cpu in allowed_cpus() and total > total_before:
            shares.append(1 - (idle - idle_before) / (total - total_before))
    return sum(shares) if shares else None


def _times(stat: Path) -> dict[int, tuple[int, int]]:
    """Of each CPU: idle ticks, and all."""
    times = {}
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            numbers = list(map(int, ticks[:8]))  # a guest's time is in the user's already
            times[int(name[3:])] = (numbers[3] + numbers[4], sum(numbers))
    return times
