"""Python without HTTP and without an event loop: threads, interrupts, and what is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest
from clients import MODEL, n_cancelled, until
from fakes import FakeBackend, fake_app, spelling

from openai_local import RequestError, SyncEngine
from openai_local.engine import EngineStopped


@contextmanager
def engine_of(backend: FakeBackend | None = None) -> Iterator[SyncEngine]:
    app = fake_app(backend)
    engine = SyncEngine.of(app)
    try:
        yield engine
    finally:
        engine.close()
        anyio.run(app.aclose)


def test_everything_that_the_engine_does_without_a_loop() -> None:
    with engine_of(FakeBackend(next_token=spelling("hello"))) as engine:
        assert engine.chat("hi", temperature=0).text == "hello"
        assert "".join(chunk.text for chunk in engine.stream_chat("hi", temperature=0)) == "hello"
        assert engine.models() == [MODEL]
        assert engine.tokenize("hi") == [104, 105]
        assert engine.detokenize([104, 105]) == "hi"
        assert engine.embed("hi").shape == (1, 8)
        assert engine.apply_template("hi") == "<user>hi<assistant>"
        with pytest.raises(RequestError):
            engine.rerank("a", ["b"])
    with engine_of() as engine:
        text = engine.complete("ab", max_tokens=4, temperature=0).text
        chunks = engine.stream_complete("ab", max_tokens=4, temperature=0)
        assert "".join(chunk.text for chunk in chunks) == text


def test_many_threads_share_one_batch_and_one_more_thread() -> None:
    backend = FakeBackend(step_s=0.002)
    with engine_of(backend) as engine, ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda i: engine.chat("hi", seed=i, max_tokens=20).text, range(8)))
        assert len(texts) == 8
        assert max(len(set(batch.slots)) for batch in backend.batches) > 1
        assert sum(t.name == "openai_local sync engine" for t in threading.enumerate()) == 1
    until(lambda: all(t.name != "openai_local sync engine" for t in threading.enumerate()))


@pytest.mark.anyio
async def test_it_works_in_the_thread_pool_of_a_running_loop_and_in_its_thread() -> None:
    app = fake_app()
    engine = SyncEngine.of(app)
    answer = await anyio.to_thread.run_sync(lambda: engine.chat("hi", max_tokens=3))
    assert (
        engine.chat("hi", max_tokens=3).usage.completion_tokens
        == 3
        == (answer.usage.completion_tokens)
    )
    engine.close()
    await app.aclose()


def test_errors_are_raised_where_the_call_is() -> None:
    with engine_of() as engine:
        with pytest.raises(RequestError, match="temprature"):
            engine.chat("hi", temprature=1)
        with pytest.raises(RequestError, match="maximum context"):
            list(engine.stream_chat("h" * 500))


def test_a_stream_that_is_closed_or_dropped_frees_its_place() -> None:
    with engine_of(FakeBackend(n_ctx=4096, step_s=0.005)) as engine:
        with engine.stream_chat("hi") as stream:
            next(stream)
        until(lambda: n_cancelled(engine._engine._local) == 1)
        assert list(stream) == []
        for _ in engine.stream_chat("hi"):
            break
        gc.collect()
        until(lambda: n_cancelled(engine._engine._local) == 2)


def test_closing_ends_those_who_wait() -> None:
    backend = FakeBackend(n_ctx=4096, step_s=0.01)
    engine = SyncEngine("fake.gguf")
    engine._engine._local = fake_app(backend)
    with ThreadPoolExecutor(2) as pool:
        with engine:
            call = pool.submit(lambda: engine.chat("hi"))
            stream = pool.submit(lambda: list(engine.stream_chat("hi")))
            until(lambda: len(backend.batches) > 3)
        for waiting in (call, stream):
            with pytest.raises(EngineStopped):
                waiting.result(10)
    assert backend.closed


def test_an_interrupt_leaves_nothing_running() -> None:
    with engine_of(FakeBackend(n_ctx=4096, step_s=0.01)) as engine:
        engine.chat("hi", max_tokens=1)
        for call in (lambda: engine.chat("hi"), lambda: list(engine.stream_chat("hi"))):
            before = n_cancelled(engine._engine._local)
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                call()
            until(lambda n=before: n_cancelled(engine._engine._local) == n + 1)


FORGETFUL = """
import sys
sys.path.insert(0, "tests")
from fakes import FakeBackend, fake_app
from openai_local import SyncEngine
engine = SyncEngine.of(fake_app(FakeBackend(n_ctx=4096, step_s=0.01)))
stream = engine.stream_chat("hi")
next(stream)
"""


def test_a_script_that_closes_nothing_ends() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", FORGETFUL], check=True, timeout=30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_a_loop_of_its_own() -> None:
    script = """
import os, sys
from openai_local.inprocess.portal import Portal

async def pid():
    return os.getpid()

portal = Portal("p")
assert portal.call(pid) == os.getpid()
child = os.fork()
if child == 0:
    ok = portal.call(pid) == os.getpid()
    portal.close()
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
assert portal.call(pid) == os.getpid()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
