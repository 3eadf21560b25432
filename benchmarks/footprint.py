"""What open streams take in memory, and whether starting and stopping leaves any of it behind.

python benchmarks/footprint.py [--streams 2000] [--cycles 100]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shlex
import sys
import threading
from pathlib import Path

import anyio
from guest import ready
from load import Endpoint, get_json
from servers import start, stop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route

import openai_local

SETTLE_S = 3.0


def host() -> Starlette:
    """A host with the application at /v1, and a stream of its own that says nothing."""

    async def ping(request: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    async def silence(request: Request) -> StreamingResponse:
        async def nothing():  # type: ignore[no-untyped-def]
            yield b":\n\n"
            await anyio.sleep_forever()

        return StreamingResponse(nothing(), media_type="text/event-stream")

    local = openai_local.app(n_parallel=4, n_ctx=512, max_waiting=10_000)
    routes = [
        Route("/ping", ping),
        Route("/silence", silence, methods=["POST"]),
        Mount("/v1", local),
    ]
    return Starlette(routes=routes, lifespan=local.lifespan)


def memory_kib(pid: int | str = "self") -> int:
    """The resident memory of a process, without the pages of files (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise OSError(f"no RssAnon of {pid}")


async def open_streams(
    endpoint: Endpoint, route: str, body: bytes, n: int
) -> list[asyncio.StreamWriter]:
    """So many connections, each past the head of an answer with status 200."""

    async def open_one() -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        head = f"POST {route} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status = await reader.readline()
        assert b" 200 " in status, status
        await reader.readuntil(b"\r\n\r\n")
        return writer

    writers: list[asyncio.StreamWriter] = []
    for first in range(0, n, 100):
        count = min(100, n - first)
        writers += await asyncio.gather(*(open_one() for _ in range(count)))
    return writers


async def measure(port: int, pid: int, n: int, ours: bool) -> float:
    """KiB that each of ``n`` open streams takes."""
    own = Endpoint("127.0.0.1", port, "")
    await ready(own)
    model = (await get_json(Endpoint("127.0.0.1", port, "/v1"), "/models"))["data"][0]["id"]
    messages = [{"role": "user", "content": "Tell me a story of a sea."}]
    chat = {"model": model, "messages": messages, "stream": True, "ignore_eos": True}
    route, body = ("/v1/chat/completions", json.dumps(chat).encode()) if ours else ("/silence", b"")
    # What the first ones have made is there for all others.
    first = await open_streams(own, route, body, 20)
    await asyncio.sleep(SETTLE_S)
    before = memory_kib(pid)
    others = await open_streams(own, route, body, n)
    await asyncio.sleep(SETTLE_S)
    each = (memory_kib(pid) - before) / n
    for writer in first + others:
        writer.close()
    return each


def streams(n: int) -> None:
    """Of the host's own and of ours, each in a server of its own: memory is seldom given back."""
    for what, ours in (("the host's own", False), ("ours", True)):
        command = [sys.executable, "-m", "uvicorn", "--factory", "footprint:host"]
        command += ["--app-dir", sys.path[0], "--port", "{port}", "--log-level", "warning"]
        server = start("footprint", shlex.join(command), None, {})
        assert server.process is not None
        try:
            each = asyncio.run(measure(server.endpoint.port, server.process.pid, n, ours))
        finally:
            stop(server)
        print(f"{n} open streams, {what}: {each:.1f} KiB each", flush=True)


async def cycles(n: int) -> None:
    """Load, one request, stop; what is left of threads and memory."""
    import httpx

    local = openai_local.app(n_parallel=4, n_ctx=512)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(local), base_url="http://host")
    after: list[int] = []
    for _ in range(n):
        async with local.lifespan():
            model = (await client.get("/models")).json()["data"][0]["id"]
            body = {"model": model, "prompt": "a", "max_tokens": 4}
            assert (await client.post("/completions", json=body)).status_code == 200
        after.append(memory_kib() >> 10)
    await client.aclose()
    shown = " ".join(f"{i + 1}: {after[i]}" for i in range(n) if (i + 1) % (n // 10 or 1) == 0)
    print(f"{n} lives; MiB after life 1: {after[0]}, {shown}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--cycles", type=int, default=100)
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if args.streams:
        streams(args.streams)
    if args.cycles:
        n_threads = threading.active_count()
        asyncio.run(cycles(args.cycles))
        print(f"threads: {n_threads} before, {threading.active_count()} after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
