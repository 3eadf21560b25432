"""What two token sequences have in common. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """How many tokens ``a`` and ``b`` begin with alike, at most ``limit``."""
    n = max(min(len(a), len(b), limit), 0)
    # Whole blocks compare in C; only the block that differs is walked.
    for start in range(0, n, 256):
        end = min(start + 256, n)
        if tuple(a[start:end]) != tuple(b[start:end]):
            return next(i for i in range(start, end) if a[i] != b[i])
    return n
