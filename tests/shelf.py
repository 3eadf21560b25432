"""Fake models of given sizes, that see when too much is loaded."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes import FakeBackend

from openai_local.application import Application
from openai_local.config import load_settings
from openai_local.engine import Engine, EngineConfig, ModelLoadFailed
from openai_local.engine.loading import Loading

MIB = 1 << 20
START_S = 30.0


class Shelf:
    """Backends by the names of their models. What is in ``broken`` fails to load; what is in
    ``gates`` is loaded, or freed, when its gate opens, and has a quarter loaded until then."""

    def __init__(self, sizes: Mapping[str, int], budget: int | None = None) -> None:
        """In MiB."""
        self.sizes = sizes
        self.budget = budget
        self.broken: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self.close_gates: dict[str, threading.Event] = {}
        self.open: list[str] = []
        self.loads: list[str] = []
        self.backends: dict[str, FakeBackend] = {}
        self.most = 0
        self.options: dict[str, Any] = {}
        self._lock = threading.Lock()

    def table(self, **tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """All models as settings, with more options for some."""
        return {id: {"path": f"{id}.gguf", **tables.get(id, {})} for id in self.sizes}

    def app(self, **options: Any) -> Application:
        if self.budget is not None:
            options.setdefault("models_memory", self.budget * MIB)
        settings = load_settings(**{"models": self.table(), **options})
        return Application(settings, self.open_engine, self.measure)

    def open_engine(self, config: EngineConfig) -> Engine:
        return Engine(config, open_backend=self._open)

    def measure(self, config: EngineConfig, budget: int) -> tuple[EngineConfig, int]:
        return replace(config, memory=budget), self.sizes[config.model.stem] * MIB

    def _open(self, config: EngineConfig, loading: Loading) -> FakeBackend:
        id = config.model.stem
        with self._lock:
            self.loads.append(id)
            self.open.append(id)
            assert len(set(self.open)) == len(self.open), f"{id} is loaded twice"
            self.most = max(self.most, sum(self.sizes[id] for id in self.open))
        loading.report(0.25)
        if id in self.gates:
            assert self.gates[id].wait(START_S)
        if id in self.broken:
            self._free(id)
            raise ModelLoadFailed(Path(config.model), "it is broken")
        backend = _Backend(lambda: self._free(id), **self.options)
        self.backends[id] = backend
        return backend

    def _free(self, id: str) -> None:
        if id in self.close_gates:
            assert self.close_gates[id].wait(START_S)
        with self._lock:
            self.open.remove(id)


class _Backend(FakeBackend):
    def __init__(self, free: Any, **options: Any) -> None:
        super().__init__(**options)
        self._free = free

    def close(self) -> None:
        super().close()
        self._free()
