"""Requests to generations: tokenising, the choices of one body, merging, cancelling.

Knows no SSE and no JSON.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

import anyio.to_thread

from openai_local.chat_template import RenderedPrompt
from openai_local.engine import Engine, Finished, Generation, GenerationRequest, TextDelta, Usage
from openai_local.engine.bridge import Signal
from openai_local.routes.errors import RequestError

T = TypeVar("T")

# Shorter texts are tokenised faster than a thread is reached.
INLINE_CHARS = 4096


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Run short work here and long work on a worker thread; ``size`` is in characters or so."""
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


async def tokenize_all(
    engine: Engine, prompts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]], *,
    parse_special: bool,
) -> list[Sequence[int]]:  # fmt: skip
    """Token ids of each prompt of a body that takes one or many, as text or as token ids."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return list(prompts)  # type: ignore[arg-type]
    return await off_loop(
        sum(map(len, texts)),
        lambda: [engine.tokenize(text, parse_special=parse_special) for text in texts],
    )


class Choices:
    """The generations of one body, ``per_prompt`` of each of its prompts, in order."""

    def __init__(
        self, engine: Engine, requests: Sequence[GenerationRequest], per_prompt: int
    ) -> None:
        """Submits all or none. Raises what Engine.submit raises, and RequestError."""
        if len(requests) > engine.n_unfinished_max:  # to come back later would be in vain
            raise RequestError(
                f"{len(requests)} choices are more than the {engine.n_unfinished_max} that this"
                " server computes or lets wait at once.",
                param="n",
                code="invalid_value",
            )
        self._per_prompt = per_prompt
        self._usages: dict[int, Usage] = {}
        self._generations: list[Generation] = []
        try:
            for request in requests:
                self._generations.append(engine.submit(request))
        except BaseException:
            self.cancel()
            raise

    async def events(self) -> AsyncGenerator[tuple[int, TextDelta | Finished], None]:
        """What happens, with the index of the choice in which it does."""
        running = dict(enumerate(self._generations))
        arrived = Signal()
        for generation in self._generations:
            generation.on_arrival(arrived)
        while running:
            for index in list(running):
                for event in running[index].take():
                    if isinstance(event, Finished):
                        self._usages[index] = event.usage
                        del running[index]
                    yield index, event
            # An error is left alone by what came before it.
            if running and not any(generation.waiting for generation in running.values()):
                await arrived.wait()

    def usage(self) -> Usage:
        """Of all choices, once they have finished; the choices of one prompt count it once."""
        usages = [self._usages[index] for index in sorted(self._usages)]
        firsts = usages[:: self._per_prompt]
        return Usage(
            sum(usage.n_prompt for usage in firsts),
            sum(usage.n_completion for usage in usages),
            sum(usage.n_cached for usage in firsts),
        )

    def cancel(self) -> None:
        """Free the places of those that still run."""
        for generation in self._generations:
            generation.cancel()
