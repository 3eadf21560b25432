"""What chat and text completions share on the wire: chunks, usage, one answer from either.

The whole response is the fold of its chunks, so that streaming and not cannot drift apart.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from openai_local.api.generation import Choices
from openai_local.api.logprobs import extend
from openai_local.api.obfuscation import obfuscate
from openai_local.api.types.generation import StreamOptions
from openai_local.engine import Usage

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

    def last(self, usage: Usage, n_reasoning: int = 0) -> Chunk:
        """The chunk that has the usage and no choices; ``n_reasoning`` tokens were of thoughts."""
        return self._with([], _usage(usage, n_reasoning))

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


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion whose generations are submitted. ``chunks``, the last of which has the usage,
    are read once; whoever stops before their end must call :meth:`cancel`."""

    choices: Choices
    chunks: Chunks
    fold: Callable[[Chunks], Awaitable[dict[str, Any]]]

    async def streamed(self, options: StreamOptions | None) -> Chunks:
        """The chunks as a client of a stream gets them."""
        options = options or StreamOptions()
        async with aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                if not options.include_usage and chunk.pop("usage") is not None:
                    continue
                if options.include_obfuscation and chunk["choices"]:
                    obfuscate(chunk)
                yield chunk

    def cancel(self) -> None:
        """Free the places of the generations that still run."""
        self.choices.cancel()


# What a planned request is: submits all its generations, or none and raises.
Start = Callable[[], Completion]


async def whole(plan: Callable[[], Awaitable[Start]]) -> dict[str, Any]:
    """The completion that ``plan`` comes to, as one object."""
    completion = (await plan())()
    try:
        return await completion.fold(completion.chunks)
    finally:
        completion.cancel()


@dataclass(frozen=True, slots=True)
class Whole:
    """A response put together: its last chunk, and finish reason and logprobs by choice."""

    last: Chunk
    reasons: dict[int, str]
    logprobs: dict[int, dict[str, Any]]


async def gather(chunks: Chunks, add: Callable[[dict[str, Any]], None]) -> Whole:
    """All of ``chunks``; ``add`` takes what each chunk's choice adds to the text."""
    last: Chunk = {}
    reasons: dict[int, str] = {}
    logprobs: dict[int, dict[str, Any]] = {}
    timings: Chunk = {}
    async for last in chunks:
        for choice in last["choices"]:
            index = choice["index"]
            add(choice)
            reasons[index] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                extend(logprobs.setdefault(index, {}), choice["logprobs"])
            if index == 0 and "timings" in last:
                timings = {"timings": last["timings"]}
    ordered = {index: reasons[index] for index in sorted(reasons)}
    return Whole({**last, **timings}, ordered, logprobs)


def _usage(usage: Usage, n_reasoning: int) -> dict[str, Any]:
    """Nothing here is audio, or a prediction."""
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": usage.n_cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": n_reasoning,
            "rejected_prediction_tokens": 0,
        },
    }
