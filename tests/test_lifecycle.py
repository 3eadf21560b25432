"""Loading, ending and Ctrl-C: everybody gets an answer, and no thread is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import pytest
from clients import OpenRequest, client_of
from fakes import FakeBackend, fake_app
from servers import (
    MODEL,
    SMALL,
    client_at,
    engine_threads,
    environment,
    process,
    serve,
    server_process,
    wait_until,
)
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

import openai_local
from openai_local.application import Application
from openai_local.config import load_settings
from openai_local.engine import Engine, EngineConfig, EngineStopped

CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 4}
ENDLESS = {**CHAT, "model": MODEL, "max_tokens": None, "ignore_eos": True, "stream": True}

HOSTS = """
from starlette.applications import Starlette
from starlette.routing import Mount
import openai_local

local = openai_local.app()
warm = Starlette(routes=[Mount("/v1", local)], lifespan=local.lifespan)
lazy = Starlette(routes=[Mount("/v1", local)])
"""

SLOW_HOSTS = """
import sys, time
from starlette.applications import Starlette
from starlette.routing import Mount
from openai_local.application import Application
from openai_local.config import load_settings
from openai_local.engine import Engine, EngineStopped

def open_backend(config, stopping):
    print("loading", file=sys.stderr)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if stopping():
            print("given up", file=sys.stderr)
            raise EngineStopped
        time.sleep(0.01)
    raise MemoryError

settings = load_settings(model="fake.gguf")
local = Application(settings, lambda config: Engine(config, open_backend=open_backend))
warm = Starlette(routes=[Mount("/v1", local)], lifespan=local.lifespan)
lazy = Starlette(routes=[Mount("/v1", local)])
"""

EXIT = """
import asyncio, atexit, sys, threading

# Registered first, so it runs last: the engine's own handler has stopped its thread by then.
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))

from openai_local.engine import Engine, EngineConfig, GenerationRequest, SamplingParams
from openai_local.models.files import packaged_smollm2

engine = Engine(EngineConfig(packaged_smollm2(), n_ctx=512, n_parallel=4, n_threads=1))

async def main():
    await engine.ready()
    prompt = engine.tokenize("Once upon a time")
    request = GenerationRequest(prompt, 400, SamplingParams(ignore_eos=True))
    n = 0
    async for _ in engine.submit(request):
        n += 1
        if n == 5:
            sys.exit(7)

asyncio.run(main())
"""

EXIT_IN_LOAD = """
import asyncio, sys

async def main():
    task = asyncio.create_task(local.registry.get("fake"))
    await asyncio.sleep(0.2)
    sys.exit(7)

asyncio.run(main())
"""

EXIT_IN_CLOSE = """
import sys, threading, time
from openai_local.engine import Engine, EngineStopped

told = threading.Event()

def open_backend(config, stopping):
    while not stopping():
        time.sleep(0.001)
    told.set()
    time.sleep(0.5)  # as C code that nothing interrupts
    print("given up")
    raise EngineStopped

engine = Engine("fake.gguf", open_backend=open_backend)
engine.start()
threading.Thread(target=engine.close, daemon=True).start()
told.wait()
sys.exit(7)
"""


def uvicorn(folder: Path, host: str, source: str = HOSTS) -> list[str]:
    (folder / "hosts.py").write_text(source)
    app = "openai_local:app --factory" if host == "itself" else f"hosts:{host}"
    return ["-m", "uvicorn", *app.split(), "--app-dir", str(folder), "--port", "{port}"]


def post(url: str, model: str) -> httpx.Response:
    with client_at(url) as client:
        return client.post("/v1/chat/completions", json={**CHAT, "model": model})


@pytest.mark.model
@pytest.mark.parametrize("host", ["itself", "warm", "lazy"])
def test_ctrl_c_in_a_stream_tells_the_reader_and_ends_the_server(host: str, tmp_path: Path) -> None:
    command = uvicorn(tmp_path, host)
    with (
        server_process(command, environment(n_ctx=4096), "/v1/health") as running,
        client_at(running.url) as client,
        client.stream("POST", "/v1/chat/completions", json=ENDLESS) as response,
    ):
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        data = (line.removeprefix("data: ") for line in lines)
        for _ in range(3):
            assert json.loads(next(data))["choices"]
        running.process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        events = [json.loads(piece) for piece in data]
        assert [event["error"]["code"] for event in events if "error" in event] == [
            "engine_stopped"
        ]
        assert "error" in events[-1]
        running.wait(sent + 10 - time.monotonic())
        assert "Traceback" not in running.output


@pytest.mark.model
def test_the_interpreters_exit_in_a_generation_ends_the_thread_first() -> None:
    with process(["-c", EXIT]) as running:
        assert running.wait(60) == 7
        assert running.output == "['MainThread']\n"


@pytest.mark.model
def test_ctrl_c_while_the_model_is_loading_ends_the_server() -> None:
    command = ["-m", "uvicorn", "openai_local:app", "--factory", "--port", "{port}"]
    with process(command) as running:
        running.wait_until(lambda: "Waiting for application startup" in running.output, "the load")
        running.process.send_signal(signal.SIGINT)
        running.wait(10)
        assert "Traceback" not in running.output


@pytest.mark.parametrize("host", ["warm", "lazy"])
def test_ctrl_c_gives_a_long_load_up(host: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, process(uvicorn(tmp_path, host, SLOW_HOSTS)) as running:
        if host == "lazy":
            running.wait_until(lambda: "running on" in running.output, "the server's start")
            request = pool.submit(post, running.url, "fake")
        running.wait_until(lambda: "loading" in running.output, "the load")
        running.process.send_signal(signal.SIGINT)
        running.wait(10)
        assert "given up" in running.output
        assert "Traceback" not in running.output
        if host == "lazy":
            assert request.result(10).status_code == 503


def test_the_interpreters_exit_gives_a_long_load_up() -> None:
    with process(["-c", SLOW_HOSTS + EXIT_IN_LOAD]) as running:
        running.wait_until(lambda: "loading" in running.output, "the load")
        assert running.wait(10) == 7
        assert "given up" in running.output


def test_the_interpreters_exit_waits_for_the_thread_though_somebody_else_does() -> None:
    with process(["-c", EXIT_IN_CLOSE]) as running:
        assert running.wait(10) == 7
        assert running.output == "given up\n"


@pytest.mark.model
@pytest.mark.anyio
async def test_closing_in_a_stream_tells_the_reader_and_joins_the_thread() -> None:
    local = openai_local.app(**SMALL)
    request = OpenRequest(local, "/v1/chat/completions", ENDLESS)
    before = engine_threads()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(request.run)
            while request.body.count(b"data: ") < 4:
                await anyio.sleep(0.01)
            assert len(engine_threads() - before) == 1
            await local.aclose()
            assert not engine_threads() - before
    assert request.body.count(b'"code":"engine_stopped"') == 1
    assert not request.body.endswith(b"[DONE]\n\n")
    assert request.messages[-1]["more_body"] is False


@pytest.mark.model
@pytest.mark.anyio
async def test_the_lifespan_can_be_entered_again() -> None:
    local = openai_local.app(**SMALL)
    before = engine_threads()
    async with client_of(local) as client:
        for _ in range(2):
            async with local.lifespan():
                assert len(engine_threads() - before) == 1
                served = await client.post("/chat/completions", json={**CHAT, "model": MODEL})
                assert served.status_code == 200
            assert not engine_threads() - before
            closed = await client.post("/chat/completions", json={**CHAT, "model": MODEL})
            assert (closed.status_code, closed.json()["error"]["code"]) == (503, "engine_stopped")


@pytest.mark.anyio
async def test_where_a_start_that_was_cut_off_is_served_all_the_same_a_request_loads() -> None:
    loads: list[Path] = []

    def open_backend(config: EngineConfig, stopping: Callable[[], bool]) -> FakeBackend:
        loads.append(config.model)
        while len(loads) == 1:  # the first load takes too long
            if stopping():
                raise EngineStopped
            time.sleep(0.001)
        return FakeBackend()

    local = Application(
        load_settings(model="fake.gguf"),
        lambda config: Engine(config, open_backend=open_backend),
    )
    with anyio.move_on_after(0.1) as start:
        async with local.lifespan():
            pytest.fail("it was cut off")
    assert start.cancelled_caught
    async with client_of(local) as client:
        served = await client.post("/chat/completions", json={**CHAT, "model": "fake"})
        assert served.status_code == 200, served.text
        async with local.lifespan():
            pass
        closed = await client.post("/chat/completions", json={**CHAT, "model": "fake"})
    assert (closed.status_code, len(loads)) == (503, 2)


@pytest.mark.anyio
async def test_of_several_hosts_the_last_to_end_frees_the_models() -> None:
    backend = FakeBackend()
    local = fake_app(backend)
    body = {**CHAT, "model": "fake"}
    async with client_of(local) as client:
        async with local.lifespan():
            async with local.lifespan():
                assert (await client.post("/chat/completions", json=body)).status_code == 200
            assert (await client.post("/chat/completions", json=body)).status_code == 200
            assert not backend.closed
        assert backend.closed
        assert (await client.post("/chat/completions", json=body)).status_code == 503


@pytest.mark.model
@pytest.mark.parametrize("host", ["itself", "warm"])
def test_a_host_whose_model_cannot_be_loaded_does_not_start(host: str, tmp_path: Path) -> None:
    model = tmp_path / "damaged.gguf"
    model.write_bytes(b"not a model")
    with process(uvicorn(tmp_path, host), environment(model=model)) as running:
        assert running.wait(60) == 3
        assert f"cannot load {model}: it is not a GGUF file" in running.output
        assert "Application startup failed" in running.output
        if host == "itself":
            assert "Traceback" not in running.output


@pytest.mark.model
def test_a_failed_lazy_load_is_a_503_with_the_reason_and_is_tried_again(
    tmp_path: Path, smollm2: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"not a model")
    local = openai_local.app(model, **SMALL)
    with serve(Starlette(routes=[Mount("/v1", local)])) as url, client_at(url) as client:
        assert client.get("/v1/health").status_code == 200
        failed = post(url, "model")
        unhealthy = client.get("/v1/health")
        model.unlink()
        model.symlink_to(smollm2)
        served = post(url, "model")
        healthy = client.get("/v1/health")
    anyio.run(local.aclose)
    assert (failed.status_code, unhealthy.status_code) == (503, 503)
    assert failed.json()["error"]["code"] == "model_load_failed"
    assert "it is not a GGUF file" in failed.json()["error"]["message"]
    assert unhealthy.json() == failed.json()
    assert (served.status_code, healthy.status_code) == (200, 200)


def test_requests_during_the_load_wait_for_that_one_and_health_is_503() -> None:
    arrived: list[str] = []
    loads: list[Path] = []
    gate = threading.Event()

    def open_backend(config: EngineConfig, stopping: Callable[[], bool]) -> FakeBackend:
        loads.append(config.model)
        assert gate.wait(30)
        return FakeBackend()

    local = Application(
        load_settings(model="fake.gguf"),
        lambda config: Engine(config, open_backend=open_backend),
    )

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            arrived.append(scope["path"])
        await local(scope, receive, send)

    host = Starlette(routes=[Mount("/v1", counting)])
    with (
        ThreadPoolExecutor(8) as pool,
        serve(host) as url,
        client_at(url) as client,
    ):
        try:
            before = client.get("/v1/health")
            assert not loads
            requests = [pool.submit(post, url, "fake") for _ in range(8)]
            wait_until(lambda: len(arrived) == 8 and loads, "eight requests and a load")
            during = client.get("/v1/health")
            listed = client.get("/v1/models")
            assert not any(request.done() for request in requests)
        finally:
            gate.set()
        answers = [request.result(30) for request in requests]
        after = client.get("/v1/health")
    anyio.run(local.aclose)
    assert [health.status_code for health in (before, during, after)] == [200, 503, 200]
    assert during.json()["error"]["code"] == "model_loading"
    assert listed.status_code == 200
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len(loads) == 1


def test_importing_it_imports_neither_llama_cpp_nor_a_web_framework() -> None:
    source = "import openai_local, sys; sys.stdout.write(' '.join(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", source], check=True, capture_output=True, text=True, timeout=60
    )
    modules = ran.stdout.split()
    assert "openai_local" in modules
    assert not {"llama_cpp", "starlette", "pydantic", "fastapi", "uvicorn"} & set(modules)
