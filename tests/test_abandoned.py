"""Engines that nobody has any more: collected wherever that happens, without a wait."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

from fakes import FakeBackend

from openai_local.engine import EngineConfig
from openai_local.engine.engine import Engine


class SlowToClose(FakeBackend):
    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self.gate = gate

    def close(self) -> None:
        assert self.gate.wait(30)
        super().close()


def test_collecting_an_engine_waits_for_nobody() -> None:
    gate = threading.Event()
    backend = SlowToClose(gate)
    engine = Engine(EngineConfig(Path("fake.gguf")), open_backend=lambda *_: backend)
    engine.start().result(10)
    worker = engine._worker
    lock = threading.Lock()

    def needs_the_lock(died: bool) -> None:
        with lock:
            pass

    engine.on_end(needs_the_lock)
    with lock:
        del engine
        gc.collect()
        assert worker.stopping and not worker.died.done()
        gate.set()
    assert worker.died.result(10) is False
    assert worker.join(10)
