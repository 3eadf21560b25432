"""How long a host's own route takes while the mounted model works, beside when it is idle.

python benchmarks/guest.py [--streams 16] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shlex
import sys
import time
from statistics import median
from typing import Any

from load import Endpoint, Shape, chat, chat_body, get_json, prompts
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


async def measure(port: int, n_clients: int, seconds: float) -> None:
    own, v1 = Endpoint("127.0.0.1", port, ""), Endpoint("127.0.0.1", port, "/v1")
    await ready(own)
    model = (await get_json(v1, "/models"))["data"][0]["id"]
    texts = prompts(n_clients * 100, 32, "guest")
    # Longer than can be made in the time: the streams run for all of it.
    endless = [
        chat_body(model, text, seed, Shape(max_tokens=100_000))
        for seed, text in enumerate(texts[:n_clients])
    ]
    short = [chat_body(model, text, seed, Shape()) for seed, text in enumerate(texts)]
    # Random tokens, so that nothing is to be rendered or tokenised.
    rng = random.Random("guest")
    tokens = [
        {key: value for key, value in body.items() if key != "messages"}
        | {"prompt": [rng.randrange(1000, 20_000) for _ in range(48)]}
        for body in short
    ]
    for what, bodies, route in (
        ("idle", [], ""),
        (f"{n_clients} streams", endless, "/chat/completions"),
        (f"{n_clients} clients, chats of 64 tokens", short, "/chat/completions"),
        (f"{n_clients} clients, the same of token ids", tokens, "/completions"),
    ):
        times, n_answers = await under_load(own, v1, bodies, route, n_clients, seconds)
        print(f"{what:40} {_spread(times)} of {len(times)}; {n_answers} answers", flush=True)


async def under_load(
    own: Endpoint,
    v1: Endpoint,
    bodies: list[dict[str, Any]],
    route: str,
    n_clients: int,
    seconds: float,
) -> tuple[list[float], int]:
    """What the host's route took meanwhile, and how many answers were complete in the time."""
    n_answers = 0

    async def client(bodies: list[dict[str, Any]]) -> None:
        nonlocal n_answers
        for body in bodies:
            await chat(v1, body, route)
            n_answers += 1

    clients = [asyncio.create_task(client(bodies[i::n_clients])) for i in range(n_clients)]
    await asyncio.sleep(1 if bodies else 0)  # until all have begun
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    times = await ping_until(own, done)
    for task in clients:
        task.cancel()
    ended = await asyncio.gather(*clients, return_exceptions=True)
    failed = [e for e in ended if isinstance(e, Exception)]
    if failed:
        raise failed[0]
    await asyncio.sleep(1)  # until all have left
    return times, n_answers


def _spread(times: list[float]) -> str:
    values = (median(times), percentile(times, 0.99), max(times))
    return "/".join(f"{1000 * value:.1f}" for value in values) + " ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    args = parser.parse_args()
    command = [sys.executable, "-m", "uvicorn", "--factory", "guest:host", "--log-level", "warning"]
    command += ["--app-dir", sys.path[0], "--port", "{port}"]
    server = start("guest", shlex.join(command), None, {})
    try:
        print("host's route, p50/p99/max")
        asyncio.run(measure(server.endpoint.port, args.streams, args.seconds))
    finally:
        stop(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
