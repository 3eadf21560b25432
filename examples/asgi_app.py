"""Plain ASGI, without any framework: a host of one page, and a local model at /v1 in front of it.

uvicorn examples.asgi_app:app
"""

from collections.abc import Awaitable, Callable
from typing import Any

import openai_local


async def host(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    assert scope["type"] == "http"  # so it has no lifespan; ours runs all the same
    text = b"This is the host; the model answers at /v1."
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


app = openai_local.Middleware(host, prefix="/v1")
