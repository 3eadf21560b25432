"""Batches the embedding inputs of all requests on a context of their own. Engine thread only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from openai_local.engine.backend import Batch, EmbeddingBackend, Floats


@dataclass(slots=True)
class EmbeddingJob:
    """The inputs of one request, and the future of its unit vectors, shape (n_inputs, n_embd), or
    of what the backend has in place of them."""

    inputs: Sequence[Sequence[int]]
    future: Future[Floats] = field(default_factory=Future)

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(slots=True)
class _Input:
    job: EmbeddingJob
    index: int
    tokens: Sequence[int]
    n_done: int = 0
    parts: list[Floats] = field(default_factory=list)


class Embedder:
    """Works in waves: as many inputs as fit the context, computed in steps, then forgotten."""

    def __init__(self, open: Callable[[], EmbeddingBackend]) -> None:
        """``open`` is called for the first job."""
        self._open = open
        self._backend: EmbeddingBackend | None = None
        self._waiting: deque[_Input] = deque()
        self._wave: list[_Input] = []
        self._vectors: dict[int, list[Floats | None]] = {}

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._wave

    def submit(self, job: EmbeddingJob) -> None:
        """Raises what opening the backend raises."""
        if self._backend is None:
            self._backend = self._open()
        self._vectors[id(job)] = [None] * len(job.inputs)
        for index, tokens in enumerate(job.inputs):
            self._waiting.append(_Input(job, index, tokens))

    def step(self, n_tokens: int) -> int:
        """Compute about ``n_tokens``, at least one input's piece; returns how many it were."""
        backend = self._backend
        if backend is None:
            return 0
        if not self._wave:
            self._start_wave(backend)
        if not self._wave:
            return 0
        pieces = self._pieces(backend, n_tokens)
        slots = [np.full(n, slot, np.int32) for slot, _, n in pieces]
        batch = Batch(
            tokens=np.concatenate(
                [np.asarray(i.tokens[i.n_done : i.n_done + n], np.int32) for _, i, n in pieces]
            ),
            positions=np.concatenate(
                [np.arange(i.n_done, i.n_done + n, dtype=np.int32) for _, i, n in pieces]
            ),
            slots=np.concatenate(slots),
            outputs=np.ones(sum(n for _, _, n in pieces), np.int8),
        )
        for (_, item, n), part in zip(pieces, backend.embed(batch), strict=True):
            item.parts.append(part)
            item.n_done += n
            if item.n_done == len(item.tokens):
                self._finish(backend, item)
        if all(item.n_done == len(item.tokens) for item in self._wave):
            self._wave.clear()
            backend.reset()
        return len(batch)

    def fail(self, error: Exception) -> None:
        """Everything in hand fails."""
        items = [*self._wave, *self._waiting]
        self._wave.clear()
        self._waiting.clear()
        self._vectors.clear()
        if self._backend is not None:
            self._backend.reset()
        for item in items:
            item.job.fail(error)

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()

    def _start_wave(self, backend: EmbeddingBackend) -> None:
        n_cells = 0
        limit = backend.n_batch if backend.whole_inputs else max(backend.n_batch, backend.n_max)
        while self._waiting and len(self._wave) < backend.n_seq:
            item = self._waiting[0]
            if item.job.future.cancelled():
                self._waiting.popleft()
                self._vectors.pop(id(item.job), None)
                continue
            if self._wave and n_cells + len(item.tokens) > limit:
                break
            n_cells += len(item.tokens)
            self._wave.append(self._waiting.popleft())

    def _pieces(self, backend: EmbeddingBackend, n_tokens: int) -> list[tuple[int, _Input, int]]:
        pieces: list[tuple[int, _Input, int]] = []
        left = min(n_tokens, backend.n_batch)
        whole = backend.whole_inputs
        for slot, item in enumerate(self._wave):
            rest = len(item.tokens) - item.n_done
            if rest == 0:
                continue
            if whole and pieces and rest > left:
                break
            n = rest if whole else min(rest, left)
            if n <= 0:
                break
            pieces.append((slot, item, n))
            left -= n
        return pieces

    def _finish(self, backend: EmbeddingBackend, item: _Input) -> None:
        vectors = self._vectors.get(id(item.job))
        if vectors is None:
            return
        vector = backend.pool(item.parts, len(item.tokens))
        norm = 0.0 if backend.ranks else float(np.linalg.norm(vector))
        vectors[item.index] = vector / norm if norm > 0 else vector
        item.parts.clear()
        done = [v for v in vectors if v is not None]
        if len(done) == len(vectors):
            del self._vectors[id(item.job)]
            if item.job.future.set_running_or_notify_cancel():
                item.job.future.set_result(np.stack(done).astype(np.float32, copy=False))
