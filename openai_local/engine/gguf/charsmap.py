"""The table by which a unigram vocabulary normalises text, walked as llama.cpp will walk it.

llama.cpp throws at a text that leads out of it, which ends the process. Pure: bytes in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BYTES = np.arange(1, 256, dtype=np.int64)
_AT_ONCE = 4096
_CHECK = 0x800000FF
_VALUE = 0x7FFFFFFF


def is_sound(charsmap: bytes) -> bool:
    """Whether no text leads out of it.

    A double array (XCDA) of 32-bit nodes after its size in bytes, then texts that end in zeros: a
    node has its byte in bits 0 to 7, whether a text ends here in 8, its offset in 10 to 30.
    """
    if len(charsmap) < 4:
        return False
    n_bytes = int.from_bytes(charsmap[:4], "little")
    texts = charsmap[4 + n_bytes :]
    if not texts:
        return False
    nodes = np.frombuffer(charsmap[4 : 4 + n_bytes // 4 * 4], "<u4").astype(np.int64)
    if len(nodes) == 0:
        return True
    last_end = texts.rfind(b"\0")
    n = len(nodes)
    seen = np.zeros(n + 256, np.bool_)
    states = _base(nodes[:1])
    while len(states):
        if states.max() >= len(seen):
            return False
        states = np.unique(states[~seen[states]])
        seen[states] = True
        following = [np.empty(0, np.int64)]
        for start in range(0, len(states), _AT_ONCE):
            places = states[start : start + _AT_ONCE, None] ^ _BYTES
            if places.max() >= n:
                return False
            places = places[(nodes[places] & _CHECK) == _BYTES]
            ends = places ^ _base(nodes[places])
            leaves = ends[(nodes[places] >> 8 & 1) == 1]
            if np.any(leaves >= n) or np.any((nodes[leaves] & _VALUE) > last_end):
                return False
            following.append(ends)
        states = np.concatenate(following)
    return True


def _base(nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (nodes >> 10) << ((nodes & 1 << 9) >> 6)
