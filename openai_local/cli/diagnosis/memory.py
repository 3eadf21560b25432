"""Memory: how much is free, within which limits, and whether some of it is on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openai_local.cli.diagnosis.finding import Finding
from openai_local.cli.screen import size
from openai_local.engine.machine import free_memory, memory_limit

MEMINFO = Path("/proc/meminfo")
LITTLE = 1 << 30
MUCH_SWAP = 0.25


def look_at_memory() -> Iterator[Finding]:
    free, limit = free_memory(), memory_limit()
    bound = f", of a limit of {size(limit)}" if limit is not None else ""
    text = f"{size(free)} free{bound}"
    if free < LITTLE:
        yield Finding("memory", "slow", text, "a small model alone fits; lower n_ctx, n_parallel")
    else:
        yield Finding("memory", "ok", text)
    yield from of_swap(_fields(MEMINFO))


def of_swap(fields: dict[str, int]) -> Iterator[Finding]:
    total = fields.get("SwapTotal", 0)
    used = total - fields.get("SwapFree", 0)
    if total and used > MUCH_SWAP * total:
        text = f"{size(used)} of the memory in use are on disk (swap)"
        yield Finding("memory", "slow", text, "free some: weights on a disk decode at its speed")


def _fields(path: Path) -> dict[str, int]:
    """In bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", " ").split() for line in lines]
    return {word[0]: int(word[1]) * 1024 for word in words if len(word) == 3}
