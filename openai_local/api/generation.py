"""Requests to generations: tokenising, the choices of one body, merging, cancelling.

Knows no SSE and no JSON.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import anyio.to_thread

from openai_local.api.errors import RequestError
from openai_local.api.types.generation import GenerationBody
from openai_local.chat.template import RenderedPrompt
from openai_local.engine import Engine, Finished, Generation, GenerationRequest, Output, Usage
from openai_local.engine.bridge import Signal
from openai_local.models.loads import LoadedModel

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
    parse_special: bool, add_special: bool = True,
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
        lambda: [
            engine.tokenize(text, add_special=add_special, parse_special=parse_special)
            for text in texts
        ],
    )


async def read_biases(body: GenerationBody, engine: Engine) -> dict[int, float]:
    """The logit_bias by token; texts in it mean each of their tokens."""

    def tokens_of(text: str) -> list[int]:
        return engine.tokenize(text, add_special=False, parse_special=False)

    if not body.logit_bias:
        return {}
    size = sum(len(what) for what, _ in body.given_biases() if isinstance(what, str))
    return await off_loop(size, lambda: body.biases(tokens_of))


def generation_request(
    body: GenerationBody,
    model: LoadedModel,
    prompt: Sequence[int],
    max_tokens: int | None,
    biases: Mapping[int, float],
    choice: int,
    **more: Any,
) -> GenerationRequest:
    """What ``body`` asks for, of its ``choice``; ``more`` are fields of the request."""
    fields = {
        "stop": body.stops(),
        "stop_tokens": tuple(body.stop_token_ids or ()),
        "logprobs": body.n_logprobs(),
        "max_seconds": body.max_seconds(),
        "reuse": body.cache_prompt is not False,
        "progress": bool(body.return_progress),
        "timings": bool(body.timings_per_token),
    }
    sampling = body.sampling(model.info.sampling_defaults, biases, choice)
    return GenerationRequest(prompt, max_tokens, sampling, **{**fields, **more})


class Choices:
    """The generations of one body, ``per_prompt`` of each of its prompts, in order."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GenerationRequest],
        per_prompt: int,
        param: str = "n",
    ) -> None:
        """Submits all or none. Raises what Engine.submit raises, and RequestError, which names
        the ``param`` that says how many."""
        if len(requests) > engine.n_unfinished_max:  # to come back later would be in vain
            raise RequestError(
                f"{len(requests)} choices are more than the {engine.n_unfinished_max} that this"
                " server computes or lets wait at once.",
                param=param,
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

    async def events(self) -> AsyncGenerator[tuple[int, Output], None]:
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

    async def best(self, n: int) -> AsyncGenerator[tuple[int, Output], None]:
        """What happened in the ``n`` choices of each prompt whose tokens were the likeliest on
        average, the best first, once all have finished."""
        happened: defaultdict[int, list[Output]] = defaultdict(list)
        async with aclosing(self.events()) as events:
            async for index, event in events:
                happened[index].append(event)
        for first in range(0, len(self._generations), self._per_prompt):
            candidates = range(first, first + self._per_prompt)
            ranked = sorted(candidates, key=lambda index: -_mean_logprob(happened[index][-1]))
            for place, index in enumerate(ranked[:n], first // self._per_prompt * n):
                for event in happened[index]:
                    yield place, event

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


def _mean_logprob(last: Output) -> float:
    assert isinstance(last, Finished), "a generation ends well, or raises"
    assert last.logprob is not None, "who is ranked has logprobs"
    return last.logprob / max(last.usage.n_completion, 1)
