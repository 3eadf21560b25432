"""What was freed goes back to the system, from a thread's heap too."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A buffer that is freed makes glibc keep as much at the end of every heap; then a thread takes and
# frees what a model's vocabulary does, in small pieces.
LIFE = """
import ctypes, threading
from openai_local.engine.heap import release_memory

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024

def life():
    libc.free(libc.malloc(31 << 20))
    pieces = [0] * 40_000  # made before: what lies behind the pieces is the end of the heap
    for i in range(len(pieces)):
        pieces[i] = libc.malloc(1000)
        ctypes.memset(pieces[i], 1, 1000)
    for piece in pieces:
        libc.free(piece)
    seen.append(resident())
    release_memory()
    seen.append(resident())

release_memory()
seen = [resident()]
thread = threading.Thread(target=life)
thread.start()
thread.join()
print(*seen)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap is meant")
def test_what_a_thread_freed_goes_back() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIFE], capture_output=True, text=True, check=True, timeout=60
    )
    before, freed, released = map(int, run.stdout.split())
    assert freed > before + 30, "without asking the heap keeps it"
    assert released < before + 10
