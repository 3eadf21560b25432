"""POST /completions, and its legacy form with the model's name in the path."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from openai_local.engine import GenerationRequest, TextDelta
from openai_local.routes.chunks import Chunks, Head, check_streaming, gather, respond
from openai_local.routes.errors import RequestError
from openai_local.routes.generation import Choices, tokenize_all
from openai_local.routes.request import Refused, read
from openai_local.routes.services import Services
from openai_local.routes.types.common import MAX_PROMPTS
from openai_local.routes.types.completions import CompletionRequest

DEFAULT_MAX_TOKENS = 16  # the specification's

# With the values that ask for nothing, so that clients which send them are served.
REFUSED: Refused = {"best_of": (1,), "echo": (False,), "logprobs": (), "suffix": ("",)}


async def create(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {})


async def create_for_engine(services: Services, request: Request) -> ASGIApp:
    return await _create(services, request, {"model": services.registry.default_id})


async def _create(services: Services, request: Request, fixed: dict[str, Any]) -> ASGIApp:
    body = await read(request, CompletionRequest, REFUSED, services.settings.max_body_bytes, fixed)
    check_streaming(body)
    model = await services.model(request, body.model)
    # The caller writes the whole prompt, control tokens included.
    prompts = await tokenize_all(model.engine, body.prompt, parse_special=True)
    n = body.n or 1
    if len(prompts) * n > MAX_PROMPTS:
        raise RequestError(
            f"{len(prompts)} prompts with {n} choices each are more than {MAX_PROMPTS}.",
            param="n",
            code="invalid_value",
        )
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    choices = Choices(
        model.engine,
        [
            GenerationRequest(
                tokens, max_tokens, body.sampling(model.info.sampling_defaults, i), body.stops()
            )
            for tokens in prompts
            for i in range(n)
        ],
        per_prompt=n,
    )
    head = Head("cmpl", "text_completion", model.id)
    return await respond(request, body, choices, _chunks(head, choices), _fold)


async def _chunks(head: Head, choices: Choices) -> Chunks:
    async with aclosing(choices.events()) as events:
        async for index, event in events:
            if isinstance(event, TextDelta):
                yield head.chunk(_choice(index, event.text))
            else:
                yield head.chunk(_choice(index, "", event.reason))
    yield head.last(choices.usage())


def _choice(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}


async def _fold(chunks: Chunks) -> dict[str, Any]:
    whole = await gather(chunks, lambda choice: str(choice["text"]))
    choices = [_choice(index, text, whole.reasons[index]) for index, text in whole.texts.items()]
    return {**whole.last, "choices": choices}
