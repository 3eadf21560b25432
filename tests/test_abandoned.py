"""Engines that nobody has any more: collected wherever that happens, without a wait; and what an
engine had goes with its thread, without waiting for the garbage collector."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
from fakes import FakeBackend

from openai_local.application import Application
from openai_local.config import load_settings
from openai_local.engine import EngineConfig, GenerationRequest
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


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_what_an_engine_had_goes_with_its_thread() -> None:
    backends: list[weakref.ref[FakeBackend]] = []

    def open_backend(*_: object) -> FakeBackend:
        backend = FakeBackend()
        backends.append(weakref.ref(backend))
        return backend

    async def live() -> Engine:
        async with Engine(EngineConfig(Path("fake.gguf")), open_backend=open_backend) as engine:
            prompt = engine.tokenize("abc")
            events = [e async for e in engine.submit(GenerationRequest(prompt, max_tokens=3))]
            assert events
            return engine

    with no_collector():
        engine = anyio.run(live)
        assert [backend() for backend in backends] == [None]
        # Whoever keeps the door still knows what was.
        assert engine.metrics().requests_finished_total == 1
        assert engine.info.n_ctx > 0


# A template that chats, and that Jinja fails on where it is probed with other content than text.
PICKY = (
    "{% for message in messages %}{{ message.role + ': ' + message.content }}{% endfor %}"
    "{% if tools %}{{ raise_exception('no tools') }}{% endif %}"
)


def test_an_application_leaves_nothing_of_its_engines_to_the_collector(tmp_path: Path) -> None:
    template = tmp_path / "picky.jinja"
    template.write_text(PICKY)
    engines: list[weakref.ref[object]] = []

    def open_backend(*_: object) -> FakeBackend:
        backend = FakeBackend()
        engines.append(weakref.ref(backend))
        return backend

    def open_engine(config: EngineConfig) -> Engine:
        engine = Engine(config, open_backend=open_backend)
        engines.append(weakref.ref(engine))
        return engine

    settings = load_settings(model="fake.gguf", chat_template=str(template))
    app = Application(settings, open_engine)
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}

    async def live() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            async with app.lifespan():
                response = await client.post("/chat/completions", json=body)
                assert response.status_code == 200, response.text

    with no_collector():
        anyio.run(live)
        assert [what() for what in engines] == [None, None]
