"""What the machine has: cores and free memory."""

from __future__ import annotations

import os
from pathlib import Path


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads counted once.

    Two threads of a core share its vector units, so more threads than cores decode no faster.
    """
    allowed = _allowed_cpus()
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text())
        except OSError:
            return len(allowed)
    return max(1, len(siblings))


def _allowed_cpus() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity else set(range(os.cpu_count() or 1))


def free_memory() -> int:
    """Bytes that can be taken without swapping; half of all where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return 8 << 30
