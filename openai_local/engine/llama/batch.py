"""Arrays of ours as llama_batch, its memory as arrays of ours, and its return codes."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from openai_local.engine.backend import Batch, DecodeFailed, Floats
from openai_local.engine.crowding import Threads

_DECODE_REASONS = {
    1: "no place in the KV memory",
    2: "aborted",
    -1: "invalid batch",
    -2: "allocation failed",
    -3: "computation failed",
}


class CBatch:
    """llama_batch over numpy arrays of our own: filling it is four copies."""

    def __init__(self, n_max: int) -> None:
        self.tokens = np.zeros(n_max, np.int32)
        self.positions = np.zeros(n_max, np.int32)
        self.outputs = np.zeros(n_max, np.int8)
        self.slots = np.zeros(n_max, np.int32)
        self._n_seq_id = np.ones(n_max, np.int32)
        start, step = self.slots.ctypes.data, self.slots.itemsize
        self._seq_id = np.arange(n_max, dtype=np.uintp) * step + start
        self.struct = lib.llama_batch(
            0,
            _pointer(self.tokens, ctypes.c_int32),
            None,
            _pointer(self.positions, ctypes.c_int32),
            _pointer(self._n_seq_id, ctypes.c_int32),
            ctypes.cast(self._seq_id.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            _pointer(self.outputs, ctypes.c_int8),
        )

    def fill(self, batch: Batch) -> Any:
        n = len(batch)
        self.tokens[:n] = batch.tokens
        self.positions[:n] = batch.positions
        self.slots[:n] = batch.slots
        self.outputs[:n] = batch.outputs
        self.struct.n_tokens = n
        return self.struct


def _pointer(array: npt.NDArray[Any], ctype: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctype))


def view(address: Any, rows: int, columns: int) -> Floats:
    """llama.cpp's memory as an array, without a copy."""
    if not address:
        raise DecodeFailed(0, "no output")
    array: Floats = np.ctypeslib.as_array(address, shape=(rows, columns))
    return array


def decode(
    context: Any, batch: Any, call: Any = lib.llama_decode, threads: Threads | None = None
) -> None:
    """With ``threads``, as many as others leave cores for. Raises DecodeFailed."""
    if threads is not None:
        threads.begin()
        lib.llama_set_n_threads(context, threads.n, threads.n_batch)
    code = call(context, batch)
    if threads is not None:
        threads.end()
    if code != 0:
        raise DecodeFailed(code, _DECODE_REASONS.get(code, "unknown"))
