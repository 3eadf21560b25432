"""The C library's heap, which keeps what was freed until it is asked for it."""

from __future__ import annotations

import ctypes
from functools import cache

# As large as glibc's heap of a thread, which is a mapping of so many bytes.
HEAP_MAX = 64 << 20
# Less than what glibc maps apart from any heap.
BLOCK = 60 << 10


def release_memory() -> None:
    """What was freed goes back to the system: to be called on the thread that freed it.

    glibc gives each thread a heap and keeps these for the next threads. ``malloc_trim`` gives back
    the free pages of all of them, but of a thread's heap not those at the end, which may be tens of
    MiB: 100 loads of a small model left 172 MiB. They are at the end no more when there is a block
    behind them. Nothing is done where the library is another.
    """
    libc = _glibc()
    if libc is None:
        return
    blocks: list[int] = []
    while len(blocks) * BLOCK <= HEAP_MAX and (block := libc.malloc(BLOCK)):
        blocks.append(block)
    for block in blocks[:-1]:
        libc.free(block)
    libc.malloc_trim(0)
    for block in blocks[-1:]:
        libc.free(block)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
    except (AttributeError, OSError, TypeError):  # another libc, another system
        return None
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    return libc
