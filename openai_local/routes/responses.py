"""A completion as a stream of events or as one object, as its body asks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.api.chunks import Chunks, Start, whole
from openai_local.api.types.generation import GenerationBody
from openai_local.routes.host import unless_left, unless_stopping
from openai_local.routes.sse import EventStream, event


async def respond(
    request: Request, body: GenerationBody, plan: Callable[[], Awaitable[Start]]
) -> ASGIApp:
    """Raises what ``plan`` and what it returns raise, and ClientLeft."""
    if not body.stream:
        return JSONResponse(await unless_left(request.receive, lambda: whole(plan)))
    # Not unless_left: the stream waits for the client's going itself, and there are servers whose
    # receive, once it was cancelled, says ever after that the client has gone (gunicorn's own).
    start = await unless_stopping(plan)
    # Nothing awaits between here and the stream, which cancels what was started.
    completion = start()
    return EventStream(_events(completion.streamed(body.stream_options)), completion.cancel)


async def _events(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield event(chunk)
