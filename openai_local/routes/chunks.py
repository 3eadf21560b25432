"""What chat and text completions share on the wire: chunks, usage, one answer from either.

The whole response is the fold of its chunks, so that streaming and not cannot drift apart.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from openai_local.engine import Usage
from openai_local.routes.errors import RequestError
from openai_local.routes.generation import Choices
from openai_local.routes.host import unless_left
from openai_local.routes.sse import EventStream, event
from openai_local.routes.types.common import GenerationBody

Chunk = dict[str, Any]
Chunks = AsyncGenerator[Chunk, None]


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of a response have in common; ``created`` is in Unix seconds."""

    kind: str
    object: str
    model: str
    tier: str | None = None
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.kind}-{uuid.uuid4().hex}")

    def chunk(self, choice: dict[str, Any]) -> Chunk:
        return self._with([choice], None)

    def last(self, usage: Usage) -> Chunk:
        """The chunk that has the usage and no choices."""
        return self._with([], _usage(usage))

    def _with(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> Chunk:
        chunk: Chunk = {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage,
        }
        if self.tier is not None:
            chunk["service_tier"] = self.tier
        return chunk


def check_streaming(body: GenerationBody) -> None:
    """Raises RequestError where the stream's options contradict each other."""
    if body.stream_options is not None and not body.stream:
        raise RequestError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
            code="invalid_value",
        )


async def respond(
    request: Request,
    body: GenerationBody,
    choices: Choices,
    chunks: Chunks,
    fold: Callable[[Chunks], Awaitable[dict[str, Any]]],
) -> ASGIApp:
    """``chunks``, the last of which has the usage, as a stream or as one object, as asked."""
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(_events(chunks, with_usage), choices.cancel)
    try:
        return JSONResponse(await unless_left(request.receive, lambda: fold(chunks)))
    finally:
        choices.cancel()


@dataclass(frozen=True, slots=True)
class Whole:
    """A response put together: its last chunk, and text and finish reason by choice."""

    last: Chunk
    texts: dict[int, str]
    reasons: dict[int, str]


async def gather(chunks: Chunks, text_of: Callable[[dict[str, Any]], str]) -> Whole:
    """All of ``chunks``; ``text_of`` gives what a chunk's choice adds to the text."""
    last: Chunk = {}
    texts: defaultdict[int, list[str]] = defaultdict(list)
    reasons: dict[int, str] = {}
    async for last in chunks:
        for choice in last["choices"]:
            texts[choice["index"]].append(text_of(choice))
            reasons[choice["index"]] = choice["finish_reason"]
    return Whole(last, {index: "".join(texts[index]) for index in sorted(texts)}, reasons)


async def _events(chunks: Chunks, with_usage: bool) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            if not with_usage and chunk.pop("usage") is not None:
                continue
            yield event(chunk)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
    }
