"""What the machine has for this process: cores and free memory, within its control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")

# Without a limit, version 1 tells the largest number of pages.
_NO_LIMIT = 1 << 60


def physical_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, hyper-threads counted once.

    Two threads of a core share its vector units, so more threads than cores decode no faster.
    Threads that wait for each other every step must not be stopped by a quota: no more than that.
    """
    allowed = allowed_cpus()
    siblings = set()
    for cpu in allowed:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            siblings.add(path.read_text())
        except OSError:
            siblings = {str(cpu) for cpu in allowed}
            break
    quota = cpu_quota(root)
    return max(1, len(siblings) if quota is None else min(len(siblings), int(quota)))


def allowed_cpus() -> set[int]:
    """The numbers of the CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity else set(range(os.cpu_count() or 1))


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many CPUs' time the control group allows, as a container has it; None: all."""
    quotas = []
    for group in _groups(root, "cpu"):
        period = _number(group / "cpu.cfs_period_us")
        quota = _number(group / "cpu.cfs_quota_us")
        words = _text(group / "cpu.max").split()  # "max 100000", or a quota in place of max
        if len(words) == 2 and words[0] != "max":
            quota, period = int(words[0]), int(words[1])
        if quota is not None and quota > 0 and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the control group may take in all; None without a limit."""
    return min((limit for limit, _ in _memory_limits(root)), default=None)


def free_memory(root: Path = ROOT) -> int:
    """Bytes that can be taken without swapping, or being killed for what a container may take.

    Half of all memory where the system does not say.
    """
    return min([_free_on_machine(root), *(max(0, free) for _, free in _memory_limits(root))])


def _free_on_machine(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return 8 << 30


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limits of the groups, and what is left of each, files' pages that can go counted as left."""
    for group in _groups(root, "memory"):
        for limit_in, used_in in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(group / limit_in)
            if limit is None or limit >= _NO_LIMIT:
                continue
            fields = dict(
                line.split() for line in _text(group / "memory.stat").splitlines() if " " in line
            )
            idle = fields.get("total_inactive_file", fields.get("inactive_file", "0"))
            yield limit, limit - (_number(group / used_in) or 0) + int(idle)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control group and those around it, which bound it too."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, names, path = line.split(":", 2)
        if number == "0":
            mount = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = mount / path.lstrip("/")
        # In a container the path may be the host's, of which its own mount shows the end alone.
        yield from (group, *(up for up in group.parents if up.is_relative_to(mount)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
