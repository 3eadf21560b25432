"""A good guest: what it leaves alone in the process, what the host sees, and what it gives back."""

from __future__ import annotations

import gc
import logging
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from clients import MESSAGES, MODEL, OpenRequest, client_of, events_of
from fakes import FakeBackend, fake_app
from hosts import ENDLESS, check, faked
from servers import engine_threads, environment, process, serve
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.routing import Mount

from openai_local.application import Application
from openai_local.engine import Engine

CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8}

# What a host has set up, before and after our whole life. Prints what is not as it was.
LIFE = """
import asyncio, logging, os, signal, sys, threading, warnings
import httpx, numpy  # what these set up when they are imported is theirs

def state():
    loggers = {None: logging.getLogger()}
    loggers.update((n, l) for n, l in logging.root.manager.loggerDict.items()
                   if isinstance(l, logging.Logger))
    return {
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "handlers": {(n, h) for n, l in loggers.items() for h in l.handlers},
        "levels": {n: l.level for n, l in loggers.items() if l.level},
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "policy": type(asyncio.get_event_loop_policy()),
        "streams": (sys.stdout, sys.stderr),
        "directory": os.getcwd(),
        "threads": {t.name for t in threading.enumerate() if "AnyIO" not in t.name},
        "switch interval": sys.getswitchinterval(),
        "recursion": sys.getrecursionlimit(),
        "umask": os.umask(0o022),
    }

async def life():
    import openai_local
    local = openai_local.app()
    transport = httpx.ASGITransport(local)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        async with local.lifespan():
            model = (await client.get("/models")).json()["data"][0]["id"]
            body = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
            for stream in (False, True):
                answer = await client.post("/chat/completions", json={**body, "stream": stream})
                assert answer.status_code == 200, answer.text
            answer = await client.post("/embeddings", json={"model": model, "input": "a"})
            assert answer.status_code == 200, answer.text

async def main():
    before = state()
    await life()
    after = state()
    for name in before:
        if before[name] != after[name]:
            print(name, before[name], after[name])
    print("lived")

asyncio.run(main())
"""


def lived(variables: dict[str, str]) -> str:
    with process(["-c", LIFE], variables) as running:
        assert running.wait(60) == 0, running.output
        return running.output


def test_a_whole_life_leaves_the_process_as_it_was() -> None:
    assert lived(faked()) == "lived\n"


@pytest.mark.model
def test_a_whole_life_with_llama_cpp_does_too() -> None:
    assert lived(environment()) == "lived\n"


def test_two_applications_run_in_two_loops_of_two_threads_and_one_in_both() -> None:
    shared, own = fake_app(model_id="shared"), fake_app(model_id="own")
    answers: list[tuple[str, str]] = []
    failures: list[Exception] = []
    both = threading.Barrier(2, timeout=30)

    async def ask(app: Application, model: str) -> None:
        async with client_of(app) as client:
            for stream in (False, True) * 3:
                body = {**CHAT, "model": model, "stream": stream}
                response = await client.post("/v1/chat/completions", json=body)
                if stream:
                    deltas = [event["choices"][0]["delta"] for event in events_of(response)]
                    text = "".join(delta.get("content", "") for delta in deltas)
                else:
                    text = response.json()["choices"][0]["message"]["content"]
                answers.append((model, text))

    async def main(apps: list[tuple[Application, str]]) -> None:
        both.wait()
        async with anyio.create_task_group() as group:
            for app, model in apps:
                group.start_soon(ask, app, model)

    def run(backend: str, apps: list[tuple[Application, str]]) -> None:
        try:
            anyio.run(main, apps, backend=backend)
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=("asyncio", [(shared, "shared"), (own, "own")])),
        threading.Thread(target=run, args=("trio", [(shared, "shared")])),
    ]
    before = engine_threads()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(engine_threads() - before) == 2
    assert len(answers) == 18
    assert len({text for _, text in answers}) == 1
    for app in (shared, own):
        anyio.run(app.aclose)
    assert not engine_threads() - before


visitor: ContextVar[str] = ContextVar("visitor", default="nobody")


class Naming:
    """A host's middleware that sets a context variable for the request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        visitor.set(dict(scope["headers"]).get(b"x-visitor", b"").decode())
        await self.app(scope, receive, send)


@contextmanager
def logged() -> Iterator[list[tuple[str, str]]]:
    """The visitor and the message of each record of our loggers."""
    records: list[tuple[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((visitor.get(), record.getMessage()))

    handler = Handler()
    logger = logging.getLogger("openai_local")
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


@pytest.mark.anyio
async def test_the_requests_context_is_seen_by_the_hosts_hook_and_in_our_log() -> None:
    asked: list[str] = []

    def authorize(request: Request) -> None:
        asked.append(visitor.get())
        if visitor.get() == "mallory":
            raise ValueError("no such visitor")

    app = Naming(Application(fake_app().settings, authorize=authorize))
    with logged() as records:
        async with client_of(app) as client:
            for name in ("ada", "mallory"):
                await client.get("/v1/models", headers={"x-visitor": name})
    assert asked == ["ada", "mallory"]
    assert [who for who, message in records if "failed" in message] == ["mallory"]


@pytest.mark.anyio
async def test_the_requests_context_is_seen_where_a_stream_is_sent() -> None:
    senders: set[str] = set()
    local = fake_app()

    async def host(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            senders.add(visitor.get())
            await send(message)

        await local(scope, receive, noting)

    async with client_of(Naming(host)) as client:
        body = {**CHAT, "stream": True}
        await client.post("/v1/chat/completions", json=body, headers={"x-visitor": "ada"})
    await local.aclose()
    assert senders == {"ada"}


# BaseHTTPMiddleware leaves a generator of its own to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette.requests:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_behind_middleware_that_wraps_bodies_streams_arrive_and_who_leaves_frees_the_place() -> (
    None
):
    async def dispatch(request: Request, call_next: Any) -> Any:
        assert await request.body() or request.method == "GET"  # it is replayed to us
        return await call_next(request)

    local = Application(
        fake_app().settings,
        lambda config: Engine(
            config, open_backend=lambda config, stopping: FakeBackend(n_ctx=4096, step_s=0.002)
        ),
    )
    middleware = [
        Middleware(GZipMiddleware, minimum_size=1),
        Middleware(BaseHTTPMiddleware, dispatch=dispatch),
    ]
    host = Starlette(routes=[Mount("/v1", local)], middleware=middleware)
    with serve(host) as url:
        check(f"{url}/v1", {"accept-encoding": "gzip"})
    anyio.run(local.aclose)


# How we are told of a page below a proxy's /out and a host's /ai: path, root_path, raw path; and
# the prefix that clients see.
TELLINGS = {
    "by itself": ("/{page}", "", "/{page}", ""),
    "by itself, with a v1": ("/v1/{page}", "", "/v1/{page}", "/v1"),
    "Starlette": ("/ai/{page}", "/ai", "/ai/{page}", "/ai"),
    "Starlette, uvicorn's --root-path": ("/out/ai/{page}", "/out/ai", "/out/ai/{page}", "/out/ai"),
    "Starlette, daphne's --root-path": ("/ai/{page}", "/out/ai", "/ai/{page}", "/out/ai"),
    "hypercorn's dispatcher": ("/{page}", "/ai", "/ai/{page}", "/ai"),
    "Litestar": ("/{page}/", "", "/ai/{page}", "/ai"),
    "Litestar, asked with a slash": ("/{page}/", "", "/ai/{page}/", "/ai"),
    "Starlette, a root path with a slash": (
        "/out//ai/{page}",
        "/out//ai",
        "/out//ai/{page}",
        "/out/ai",
    ),
    "by itself, a root path with a slash": ("/out//{page}", "/out/", "/out//{page}", "/out"),
    "no raw path": ("/ai/{page}", "/ai", "", "/ai"),
    "a prefix like a route": ("/{page}", "/docs", "/docs/{page}", "/docs"),
    "a prefix that is written otherwise": ("/ä/{page}", "/ä", "/%C3%A4/{page}", "/%C3%A4"),
    "a prefix with what is no slash": ("/a%2Fb/{page}", "/a%2Fb", "/a%252Fb/{page}", "/a%252Fb"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("telling", TELLINGS)
async def test_the_prefix_is_in_the_urls_that_we_emit_however_it_is_told(telling: str) -> None:
    path, root, raw, prefix = TELLINGS[telling]
    local = fake_app()
    link, server = f'href="{prefix}/openapi.json"', f'"url":"{prefix or "/"}"'
    for page, url in (("docs", link), ("openapi.json", server)):
        request = OpenRequest(local, path.format(page=page), {})
        request.scope |= {"method": "GET", "root_path": root}
        request.scope["raw_path"] = raw.format(page=page).encode() or None
        await request.run()
        assert request.status == 200
        assert url in request.body.decode()


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/nothing"])
async def test_head_is_answered_by_the_headers_alone(path: str) -> None:
    local = fake_app()
    answers = []
    for method in ("GET", "HEAD"):
        request = OpenRequest(local, path, {})
        request.scope["method"] = method
        await request.run()
        answers.append((request.status, request.messages[0]["headers"][1:], bool(request.body)))
    (status, headers, _), (head_status, head_headers, has_body) = answers
    assert (head_status, head_headers, has_body) == (status, headers, False)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_many_lives_leave_no_thread_and_no_engine() -> None:
    before = engine_threads()
    engines: list[weakref.ref[Engine]] = []

    def open_engine(config: Any) -> Engine:
        engine = Engine(config, open_backend=lambda config, stopping: FakeBackend())
        engines.append(weakref.ref(engine))
        return engine

    local = Application(fake_app().settings, open_engine)
    async with client_of(local) as client:
        for _ in range(25):
            async with local.lifespan():
                answer = await client.post("/v1/chat/completions", json=CHAT)
                assert answer.status_code == 200
    assert not engine_threads() - before
    assert len(engines) == 25
    with anyio.fail_after(10):  # the thread that closed the last one has a hand on it for a moment
        while any(engine() is not None for engine in engines):
            gc.collect()
            await anyio.sleep(0.01)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_open_stream_takes_kilobytes() -> None:
    local = Application(
        fake_app(max_waiting=1000).settings,
        lambda config: Engine(
            config, open_backend=lambda config, stopping: FakeBackend(n_ctx=9999, step_s=0.01)
        ),
    )

    async def open_streams(group: Any, n: int) -> list[OpenRequest]:
        requests = [OpenRequest(local, "/v1/chat/completions", ENDLESS) for _ in range(n)]
        for request in requests:
            group.start_soon(request.run)
        with anyio.fail_after(30):
            while not all(request.messages for request in requests):
                await anyio.sleep(0.01)
        return requests

    async with anyio.create_task_group() as group:
        # What the first ones have made is there for all others, and they have all the places.
        requests = await open_streams(group, 8)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            requests += await open_streams(group, 200)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for request in requests:
            request.leave.set()
    await local.aclose()
    assert (after - before) / 200 < 64 << 10


FORK = """
import asyncio, os, sys, threading
import httpx
import openai_local
from openai_local.engine import Engine, EngineStopped

local = openai_local.app()
engine = Engine("fake.gguf")

async def ask():
    transport = httpx.ASGITransport(local)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        model = (await client.get("/models")).json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
        answer = await client.post("/chat/completions", json={**body, "temperature": 0})
        return answer.json()["choices"][0]["message"]["content"]

text = asyncio.run(ask())
if %s:
    asyncio.run(engine.ready())
# Some other thread holds every lock that there is.
engine._lock.acquire()
engine._worker._condition.acquire()
local.registry._lock.acquire()
child = os.fork()
if child:
    engine._lock.release()
    engine._worker._condition.release()
    local.registry._lock.release()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert asyncio.run(ask()) == text, "the parent goes on"
    asyncio.run(local.aclose())
    sys.exit(status)
assert asyncio.run(ask()) == text, "the child loads for itself"
asyncio.run(local.aclose())
if %s:
    try:
        asyncio.run(engine.ready())
    except EngineStopped:
        print("stopped")
    asyncio.run(engine.aclose())
sys.exit(7)
"""


def test_a_process_that_was_forked_after_a_load_answers_and_ends() -> None:
    with process(["-c", FORK % (True, True)], faked()) as running:
        assert running.wait(30) == 7, running.output
        assert running.output == "stopped\n"


@pytest.mark.model
def test_a_process_that_was_forked_after_a_load_loads_llama_cpp_again() -> None:
    with process(["-c", FORK % (False, False)]) as running:
        assert running.wait(60) == 7, running.output
