"""A deterministic backend at the engine's seam: tests need no model, and see every mistake.

The backend is the package's own, which hosts test with, too; here is what only we need.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from openai_local.application import Application
from openai_local.config import load_settings
from openai_local.engine import Engine, EngineConfig
from openai_local.engine.backend import State
from openai_local.engine.cache.disk_cache import DiskMetrics
from openai_local.engine.cache.disk_index import DiskEntry, DiskIndex, Match
from openai_local.engine.cache.state_file import digest, pack
from openai_local.testing.backend import (
    TEMPLATE,
    FakeBackend,
    FakeDraw,
    FakeEmbedding,
    NextToken,
    letters,
)
from openai_local.testing.vocabulary import BOS, CONTROL, EOG, N_VOCAB, FakeVocabulary

__all__ = [
    "BOS", "CONTROL", "EOG", "N_VOCAB", "TEMPLATE", "FakeBackend", "FakeDisk", "FakeDraw",
    "FakeEmbedding", "FakeVocabulary", "NextToken", "continuation", "fake_app", "fake_engine",
    "letters", "spelling",
]  # fmt: skip


def spelling(text: str, n_prompt: int | None = None) -> NextToken:
    """``text`` byte by byte after a prompt of ``n_prompt`` tokens, then the end.

    Without ``n_prompt``, the prompt is all up to the last "<assistant>".
    """
    data = text.encode()

    def next_token(tokens: Sequence[int]) -> int:
        start = n_prompt
        if start is None:
            prompt = bytes(t if t < 256 else 0 for t in tokens)
            start = prompt.rindex(b"<assistant>") + len(b"<assistant>")
        at = len(tokens) - start
        return data[at] if 0 <= at < len(data) else EOG

    return next_token


def continuation(prompt: Sequence[int], n: int, next_token: NextToken = letters) -> tuple[int, ...]:
    """What an undisturbed generation makes of ``prompt``."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(next_token(tokens))
        if tokens[-1] == EOG:
            break
    return tuple(tokens[len(prompt) :])


class FakeDisk:
    """Stands for a DiskCache of few files, and answers a fetch when it is told to."""

    def __init__(self, files: dict[DiskEntry, State], *, n_files: int, can_drop: bool) -> None:
        """``files`` outlive it."""
        self.files = files
        self.closed = False
        self.fetches: list[tuple[DiskEntry, Future[State]]] = []
        self._n_files = n_files
        self._can_drop = can_drop
        self._index = DiskIndex()
        for entry in files:
            self._index.add(entry)

    def match(self, prompt: Sequence[int], salt: str) -> Match:
        return self._index.match(pack(prompt)[:-4], digest(salt), whole=not self._can_drop)

    def fetch(self, entry: DiskEntry) -> Future[State]:
        assert not self.closed
        future: Future[State] = Future()
        self.fetches.append((entry, future))
        return future

    def answer(self, *, broken: bool = False) -> None:
        """The oldest fetch, if there is one."""
        if self.fetches:
            entry, future = self.fetches.pop(0)
            if future.set_running_or_notify_cancel():
                if broken or entry not in self.files:
                    self._index.remove(entry)
                    future.set_exception(OSError("a fault for the test"))
                else:
                    future.set_result(self.files[entry].copy())

    def reject(self, tokens: Sequence[int], salt: str) -> None:
        entry = self._index.find(pack(tokens), digest(salt))
        if entry is not None:
            self._index.remove(entry)

    def put(self, tokens: Sequence[int], salt: str, state: State) -> None:
        assert not self.closed
        assert state.view(np.int32).tolist() == list(tokens), "a state is what it is kept as"
        entry = DiskEntry(Path(), digest(salt), pack(tokens), state.nbytes)
        if self._index.find(entry.tokens, entry.salt) is None:
            self._index.add(entry)
        self.files[entry] = state
        if len(self.files) > self._n_files:
            oldest = next(iter(self.files))
            del self.files[oldest]
            self._index.remove(oldest)

    def metrics(self) -> DiskMetrics:
        return DiskMetrics(sum(s.nbytes for s in self.files.values()), len(self.files), 0, 0)

    def close(self, timeout_s: float) -> None:
        self.closed = True
        for _, future in self.fetches:
            if future.set_running_or_notify_cancel():
                future.set_exception(OSError("closed"))


def fake_engine(backend: FakeBackend | None = None) -> Engine:
    backend = backend or FakeBackend()
    return Engine(EngineConfig(Path("fake.gguf")), open_backend=lambda config, stopping: backend)


def fake_app(backend: FakeBackend | None = None, **options: Any) -> Application:
    """An application whose every engine runs on ``backend``."""
    backend = backend or FakeBackend()
    settings = load_settings(**{"model": "fake.gguf", **options})
    return Application(
        settings, lambda config: Engine(config, open_backend=lambda config, stopping: backend)
    )
