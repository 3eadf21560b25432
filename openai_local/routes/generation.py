"""Requests to generations: tokenising, the choices of one body, merging, cancelling."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request

from openai_local.chat_template import RenderedPrompt
from openai_local.engine import Engine, Finished, Generation, GenerationRequest, TextDelta, Usage

T = TypeVar("T")

# Shorter texts are tokenised faster than a thread is reached.
INLINE_CHARS = 4096


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """What happened in choice ``index``."""

    index: int
    event: TextDelta | Finished


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Run short work here and long work on a worker thread."""
    return work() if size <= INLINE_CHARS else await anyio.to_thread.run_sync(work)


def tokenize_prompt(engine: Engine, prompt: RenderedPrompt) -> list[int]:
    """Token ids of a rendered chat: special tokens are parsed in the template's own text only."""
    vocabulary = engine.vocabulary
    tokens: list[int] = []
    for segment in prompt.segments:
        tokens += vocabulary.tokenize(
            segment.text, add_special=False, parse_special=segment.trusted
        )
    bos = vocabulary.bos()
    if bos is not None and tokens[:1] != [bos]:
        tokens.insert(0, bos)
    return tokens


def submit(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """All or none. Raises what Engine.submit raises."""
    generations: list[Generation] = []
    try:
        for request in requests:
            generations.append(engine.submit(request))
    except BaseException:
        for generation in generations:
            generation.cancel()
        raise
    return generations


async def merge(generations: Sequence[Generation]) -> AsyncGenerator[ChoiceEvent, None]:
    """The events of all choices as they come. Leaving it cancels what still runs."""
    async with AsyncExitStack() as stack:
        for generation in generations:
            await stack.enter_async_context(generation)
        if len(generations) == 1:
            async for event in generations[0]:
                yield ChoiceEvent(0, event)
            return
        running = dict(enumerate(generations))
        while running:
            for index in list(running):
                for event in running[index].take():
                    if isinstance(event, Finished):
                        del running[index]
                    yield ChoiceEvent(index, event)
            if running:
                await wait_any(list(running.values()))


async def wait_any(generations: Sequence[Generation]) -> None:
    """Until one of them has an event."""
    arrived = anyio.Event()
    for generation in generations:
        generation.on_arrival(arrived)
    await arrived.wait()


def total(usages: Sequence[Usage], n_prompts: int = 1) -> Usage:
    """Of all choices; the choices of one prompt count it once."""
    per_prompt = max(1, len(usages) // n_prompts)
    firsts = usages[::per_prompt]
    return Usage(
        sum(usage.n_prompt for usage in firsts),
        sum(usage.n_completion for usage in usages),
        sum(usage.n_cached for usage in firsts),
    )


class ClientLeft(Exception):
    """Nobody waits for the response any more."""


async def unless_left(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """The result of ``work``, cancelled when the client goes away. Raises ClientLeft."""
    result: list[Any] = []
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        error: Exception | None = None
        try:
            result.append(await work())
        except Exception as raised:  # a task group would wrap it
            error = raised
        group.cancel_scope.cancel()
    if error is not None:
        raise error
    if not result:
        raise ClientLeft
    return result[0]  # type: ignore[no-any-return]
