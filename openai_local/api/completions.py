"""Text completions: a body planned, chunks made of what its generations do, and folded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from openai_local.api.bodies import Refusal, Refused
from openai_local.api.chunks import Chunks, Completion, Head, Start, gather
from openai_local.api.constraints import asked_for, compiled
from openai_local.api.errors import RequestError
from openai_local.api.generation import Choices, generation_request, off_loop, read_biases
from openai_local.api.logprobs import TextLogprobs
from openai_local.api.parameters import check_completion
from openai_local.api.prompts import Prompt, read_prompts
from openai_local.api.timings import with_progress, with_timings
from openai_local.api.types.common import MAX_PROMPTS
from openai_local.api.types.completions import CompletionRequest
from openai_local.engine import Finished, Output, PromptLogprobs, PromptProgress, TextDelta
from openai_local.models.session import Session

DEFAULT_MAX_TOKENS = 16  # the specification's

REFUSED: Refused = {"post_sampling_probs": Refusal("logprobs are the model's own", (False,))}


async def plan(models: Session, body: CompletionRequest) -> Start:
    """Raises RequestError, and what Session.get and the engine raise."""
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    check_completion(body, max_tokens)
    asked = asked_for(body)
    model = await models.get(body.model, "chat")
    prompts = await read_prompts(body, model)
    n = body.n or 1
    n_candidates = body.best_of or n
    param = "n" if n_candidates == n else "best_of"
    if len(prompts) * n_candidates > MAX_PROMPTS:
        raise RequestError(
            f"{len(prompts)} prompts with {n_candidates} choices each are more than {MAX_PROMPTS}.",
            param=param,
            code="invalid_value",
        )
    n_logprobs = body.n_logprobs()
    biases = await read_biases(body, model.engine)
    more: dict[str, Any] = {"prompt_logprobs": bool(body.echo) and n_logprobs is not None}
    if n_candidates > n and n_logprobs is None:
        more["logprobs"] = 0  # to tell which is best
    if asked is not None:
        more["constraint"] = await compiled(model.engine, asked)
    requests = [
        generation_request(body, model, prompt.tokens, max_tokens, biases, i, **more)
        for prompt in prompts
        for i in range(n_candidates)
    ]
    head = Head("cmpl", "text_completion", model.id)
    echo = Echo([prompt for prompt in prompts for _ in range(n)], bool(body.echo), n_logprobs)

    def start() -> Completion:
        choices = Choices(model.engine, requests, n_candidates, param)
        events = choices.events() if n_candidates == n else choices.best(n)
        return Completion(choices, _chunks(head, choices, events, echo), _fold)

    return start


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt of each choice; whether it is sent back, and whether with logprobs."""

    prompts: Sequence[Prompt]
    wanted: bool
    n_logprobs: int | None


class _Choice:
    """One choice's events as the wire has them."""

    def __init__(self, index: int, echo: Echo) -> None:
        self._index = index
        self._prompt = echo.prompts[index]
        self._logprobs = None if echo.n_logprobs is None else TextLogprobs(self._prompt.text)
        # With logprobs it waits for those of the prompt.
        self._echo_now = echo.wanted and self._logprobs is None

    def choices(self, event: Output) -> list[dict[str, Any]]:
        choices = []
        if self._echo_now:
            self._echo_now = False
            choices.append(_choice(self._index, self._prompt.text))
        if isinstance(event, PromptLogprobs) and self._logprobs is not None:
            logprobs = self._logprobs.of_prompt(event.tokens)
            choices.append(_choice(self._index, self._prompt.text, logprobs=logprobs))
        elif isinstance(event, TextDelta):
            logprobs = None if self._logprobs is None else self._logprobs.of_delta(event.logprobs)
            choices.append(_choice(self._index, event.text, logprobs=logprobs))
        elif isinstance(event, Finished):
            choices.append(_choice(self._index, "", event.reason))
        elif isinstance(event, PromptProgress):
            choices.append(_choice(self._index, ""))
        return choices


async def _chunks(
    head: Head,
    choices: Choices,
    events: AsyncGenerator[tuple[int, Output], None],
    echo: Echo,
) -> Chunks:
    writers = [_Choice(index, echo) for index in range(len(echo.prompts))]
    async with aclosing(events):
        async for index, event in events:
            for choice in await _choices(writers[index], event):
                chunk = head.chunk(choice)
                if isinstance(event, TextDelta | Finished):
                    yield with_timings(chunk, event.timings)
                elif isinstance(event, PromptProgress):
                    yield with_progress(chunk, event)
                else:
                    yield chunk
    yield head.last(choices.usage())


async def _choices(writer: _Choice, event: Output) -> list[dict[str, Any]]:
    if not isinstance(event, PromptLogprobs):
        return writer.choices(event)
    n_values = sum(1 + len(token.top) for token in event.tokens)
    return await off_loop(16 * n_values, lambda: writer.choices(event))


def _choice(
    index: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}


async def _fold(chunks: Chunks) -> dict[str, Any]:
    texts: defaultdict[int, list[str]] = defaultdict(list)
    whole = await gather(chunks, lambda choice: texts[choice["index"]].append(choice["text"]))
    choices = [
        _choice(index, "".join(texts[index]), reason, whole.logprobs.get(index))
        for index, reason in whole.reasons.items()
    ]
    return {**whole.last, "choices": choices}
