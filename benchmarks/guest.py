"""How long a host's own route takes while the mounted model streams, beside when it is idle.

python benchmarks/guest.py [--streams 16] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from statistics import median

from load import Endpoint, Shape, chat_body, drive, get_json, prompts
from servers import start, stop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from throughput import percentile

import openai_local

PING_EVERY_S = 0.02
START_S = 120.0


def host() -> Starlette:
    """A host with one route of its own and the application at /v1."""

    async def ping(request: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    local = openai_local.app()
    return Starlette(routes=[Route("/ping", ping), Mount("/v1", local)], lifespan=local.lifespan)


async def ping_until(endpoint: Endpoint, done: asyncio.Event) -> list[float]:
    """Seconds that each request to the host's route took, connecting included."""
    times: list[float] = []
    while not done.is_set():
        start_s = time.perf_counter()
        await get_json(endpoint, "/ping")
        times.append(time.perf_counter() - start_s)
        await asyncio.sleep(PING_EVERY_S)
    return times


async def ready(endpoint: Endpoint) -> None:
    """Returns once the host answers. Raises TimeoutError."""

    async def ask() -> None:
        while True:
            try:
                await get_json(endpoint, "/ping")
                return
            except OSError:
                await asyncio.sleep(0.1)

    await asyncio.wait_for(ask(), START_S)


async def measure(port: int, n_streams: int, seconds: float) -> str:
    own, v1 = Endpoint("127.0.0.1", port, ""), Endpoint("127.0.0.1", port, "/v1")
    await ready(own)
    model = (await get_json(v1, "/models"))["data"][0]["id"]
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    idle = await ping_until(own, done)
    # Longer than can be made in the time: the streams run for all of it.
    shape = Shape(max_tokens=100_000)
    bodies = [
        chat_body(model, prompt, seed, shape)
        for seed, prompt in enumerate(prompts(n_streams, 32, "guest"))
    ]
    done.clear()
    load = asyncio.create_task(drive(v1, bodies, n_streams, seconds, server="guest", index=0))
    load.add_done_callback(lambda _: done.set())
    busy = await ping_until(own, done)
    await load
    return (
        f"host route, ms (p50/p99/max of {len(idle)} and {len(busy)}): idle {_spread(idle)};"
        f" with {n_streams} streams {_spread(busy)}"
    )


def _spread(times: list[float]) -> str:
    values = (median(times), percentile(times, 0.99), max(times))
    return "/".join(f"{1000 * value:.1f}" for value in values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="idle, and again under load")
    args = parser.parse_args()
    command = [sys.executable, "-m", "uvicorn", "--factory", "guest:host", "--log-level", "warning"]
    command += ["--app-dir", sys.path[0], "--port", "{port}"]
    server = start("guest", shlex.join(command), None, {})
    try:
        print(asyncio.run(measure(server.endpoint.port, args.streams, args.seconds)))
    finally:
        stop(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
