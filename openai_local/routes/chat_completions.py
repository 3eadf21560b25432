"""POST /chat/completions."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from openai_local.chat_template import ChatTemplate
from openai_local.engine import Finished, PromptProgress, TextDelta
from openai_local.registry import LoadedModel
from openai_local.routes.chunks import Chunks, Head, gather, respond
from openai_local.routes.errors import RequestError
from openai_local.routes.generation import (
    INLINE_CHARS,
    Choices,
    generation_request,
    off_loop,
    read_biases,
    tokenize_prompt,
)
from openai_local.routes.logprobs import chat_logprobs
from openai_local.routes.messages import for_template
from openai_local.routes.parameters import check_chat
from openai_local.routes.request import Refusal, Refused, read
from openai_local.routes.services import Services
from openai_local.routes.timings import with_progress, with_timings
from openai_local.routes.types.chat_completions import ChatCompletionRequest

# Those of tools, reasoning and response formats are still to come.
REFUSED: Refused = {
    "audio": Refusal("it answers in text only"),
    "function_call": Refusal("it has no tools yet", ("none", "auto")),
    "functions": Refusal("it has no tools yet", ([],)),
    "modalities": Refusal("it answers in text only", (["text"],)),
    "moderation": Refusal("it has no moderation model"),
    "parallel_tool_calls": Refusal("it has no tools yet", (True, False)),
    "post_sampling_probs": Refusal("logprobs are the model's own", (False,)),
    "prediction": Refusal("it does not speculate; leaving it out changes no answer"),
    "prompt_cache_options": Refusal(
        "prompts are kept by their worth, without breakpoints or lifetimes",
        ({}, {"mode": "implicit"}, {"ttl": "30m"}, {"mode": "implicit", "ttl": "30m"}),
    ),
    "reasoning_effort": Refusal("it does not control reasoning yet", ("none",)),
    "response_format": Refusal("it has no response formats yet", ({"type": "text"},)),
    "store": Refusal("it keeps no completions", (False,)),
    "tool_choice": Refusal("it has no tools yet", ("none", "auto")),
    "tools": Refusal("it has no tools yet", ([],)),
    "verbosity": Refusal("models here know no verbosity", ("medium",)),
    "web_search_options": Refusal("it does not search the web"),
}


# What the engine makes of a service tier.
PRIORITIES = {"flex": -1, "default": 0, "priority": 1}


async def create(services: Services, request: Request) -> ASGIApp:
    body = await read(request, ChatCompletionRequest, REFUSED, services.settings.max_body_bytes)
    check_chat(body)
    max_tokens = body.max_completion_tokens
    max_tokens = body.max_tokens if max_tokens is None else max_tokens
    model = await services.model(request, body.model)
    tokens = await _prompt_tokens(body, model)
    biases = await read_biases(body, model.engine)
    n = body.n or 1
    more: dict[str, Any] = {
        "cache_salt": body.prompt_cache_key or "",
        "priority": PRIORITIES[body.tier()],
    }
    choices = Choices(
        model.engine,
        [generation_request(body, model, tokens, max_tokens, biases, i, **more) for i in range(n)],
        per_prompt=n,
    )
    head = Head(
        "chatcmpl", "chat.completion.chunk", model.id, tier=body.service_tier and body.tier()
    )
    fold = partial(_fold, body=body)
    return await respond(request, body, choices, _chunks(head, choices), fold)


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
                logprobs = chat_logprobs(event.logprobs)
                choice = _choice(index, {"content": event.text}, logprobs=logprobs)
                yield with_timings(head.chunk(choice), event.timings)
            elif isinstance(event, PromptProgress):
                yield with_progress(head.chunk(_choice(index, {})), event)
            elif isinstance(event, Finished):
                choice = _choice(index, {}, event.reason)
                yield with_timings(head.chunk(choice), event.timings)
    yield head.last(choices.usage())


def _choice(
    index: int,
    delta: dict[str, Any],
    reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


async def _fold(chunks: Chunks, body: ChatCompletionRequest) -> dict[str, Any]:
    whole = await gather(chunks, lambda choice: str(choice["delta"].get("content", "")))
    without_tokens: dict[str, Any] | None = None
    if body.n_logprobs() is not None:
        without_tokens = {"content": [], "refusal": None}
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": whole.logprobs.get(index, without_tokens),
            "finish_reason": whole.reasons[index],
        }
        for index, text in whole.texts.items()
    ]
    completion = {**whole.last, "object": "chat.completion", "choices": choices}
    if body.metadata is not None:
        completion["metadata"] = body.metadata
    return completion
