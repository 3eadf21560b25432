"""POST /chat/completions."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from openai_local.chat_template import ChatTemplate
from openai_local.engine import GenerationRequest, TextDelta
from openai_local.registry import LoadedModel
from openai_local.routes.chunks import Chunks, Head, check_streaming, gather, respond
from openai_local.routes.errors import RequestError
from openai_local.routes.generation import INLINE_CHARS, Choices, off_loop, tokenize_prompt
from openai_local.routes.messages import for_template
from openai_local.routes.request import Refused, read
from openai_local.routes.services import Services
from openai_local.routes.types.chat_completions import ChatCompletionRequest

# With the values that ask for nothing, so that clients which send them are served.
REFUSED: Refused = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


# What the engine makes of a service tier.
PRIORITIES = {"flex": -1, "default": 0, "priority": 1}


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, ChatCompletionRequest, REFUSED, services.settings.max_body_bytes)
    check_streaming(body)
    max_tokens = _max_tokens(body)
    model = await services.model(request, body.model)
    tokens = await _prompt_tokens(body, model)
    n = body.n or 1
    choices = Choices(
        model.engine,
        [
            GenerationRequest(
                tokens,
                max_tokens,
                body.sampling(model.info.sampling_defaults, i),
                body.stops(),
                cache_salt=body.prompt_cache_key or "",
                priority=PRIORITIES[body.tier()],
            )
            for i in range(n)
        ],
        per_prompt=n,
    )
    head = Head(
        "chatcmpl", "chat.completion.chunk", model.id, tier=body.service_tier and body.tier()
    )
    return await respond(request, body, choices, _chunks(head, choices), _fold)


def _max_tokens(body: ChatCompletionRequest) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RequestError(
            "'max_tokens' and 'max_completion_tokens' cannot both be set.",
            param="max_tokens",
            code="invalid_parameter_combination",
        )
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


async def _prompt_tokens(body: ChatCompletionRequest, model: LoadedModel) -> list[int]:
    template = model.template
    if template is None:
        raise RequestError(
            f"The model {model.id!r} cannot chat: {model.no_chat}.",
            param="model",
            code="unsupported_model",
        )
    messages = for_template(body.messages, template)
    # The template adds text of its own to each message; tool calls are seldom short.
    size = sum(
        len(message["content"]) + (INLINE_CHARS if "tool_calls" in message else 64)
        for message in messages
    )
    return await off_loop(size, lambda: _render(model, template, messages))


def _render(
    model: LoadedModel, template: ChatTemplate, messages: list[dict[str, Any]]
) -> list[int]:
    return tokenize_prompt(model.engine, template.render(messages))


async def _chunks(head: Head, choices: Choices) -> Chunks:
    started: set[int] = set()
    async with aclosing(choices.events()) as events:
        async for index, event in events:
            if index not in started:
                started.add(index)
                yield head.chunk(_choice(index, {"role": "assistant", "content": ""}))
            if isinstance(event, TextDelta):
                yield head.chunk(_choice(index, {"content": event.text}))
            else:
                yield head.chunk(_choice(index, {}, event.reason))
    yield head.last(choices.usage())


def _choice(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


async def _fold(chunks: Chunks) -> dict[str, Any]:
    whole = await gather(chunks, lambda choice: str(choice["delta"].get("content", "")))
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": whole.reasons[index],
        }
        for index, text in whole.texts.items()
    ]
    return {**whole.last, "object": "chat.completion", "choices": choices}
