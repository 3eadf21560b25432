"""Chat completions: a body planned, its text taken apart, chunks made of that and folded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from openai_local.api.answers import Answer, MessageFold
from openai_local.api.bodies import Refusal, Refused
from openai_local.api.chat_plan import check_together, plan_chat
from openai_local.api.chunks import Chunks, Completion, Head, Start, gather
from openai_local.api.constraints import asked_for
from openai_local.api.generation import Choices, generation_request, read_biases
from openai_local.api.logprobs import chat_logprobs
from openai_local.api.parameters import check_chat
from openai_local.api.timings import with_progress, with_timings
from openai_local.api.tools import read_tools
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.engine import Finished, PromptProgress, TextDelta, TokenLogprob
from openai_local.models.session import Session

REFUSED: Refused = {
    "audio": Refusal("it answers in text only"),
    "modalities": Refusal("it answers in text only", (["text"],)),
    "moderation": Refusal("it has no moderation model"),
    "post_sampling_probs": Refusal("logprobs are the model's own", (False,)),
    "prediction": Refusal("it does not speculate; leaving it out changes no answer"),
    "prompt_cache_options": Refusal(
        "prompts are kept by their worth, without breakpoints or lifetimes",
        ({}, {"mode": "implicit"}, {"ttl": "30m"}, {"mode": "implicit", "ttl": "30m"}),
    ),
    "store": Refusal("it keeps no completions", (False,)),
    "verbosity": Refusal("models here know no verbosity", ("medium",)),
    "web_search_options": Refusal("it does not search the web"),
}


# What the engine makes of a service tier.
PRIORITIES = {"flex": -1, "default": 0, "priority": 1}


async def plan(models: Session, body: ChatCompletionRequest) -> Start:
    """Raises RequestError, TemplateError, and what Session.get and the engine raise."""
    check_chat(body)
    asked, tools = asked_for(body), read_tools(body)
    check_together(asked, tools)
    max_tokens = body.max_completion_tokens
    max_tokens = body.max_tokens if max_tokens is None else max_tokens
    model = await models.get(body.model, "chat")
    plan = await plan_chat(body, model, asked, tools)
    biases = await read_biases(body, model.engine)
    n = body.n or 1
    more: dict[str, Any] = {
        "cache_salt": body.prompt_cache_key or "",
        "in_memory": body.prompt_cache_retention == "in_memory",
        "priority": PRIORITIES[body.tier()],
        "visible_tokens": plan.visible,
        "thought": plan.thought,
        "unstopped": plan.unstopped,
    }
    if plan.bound is not None:
        more["constraint"] = await plan.compiled(model.engine)
    requests = [
        generation_request(body, model, plan.tokens, max_tokens, biases, i, **more)
        for i in range(n)
    ]
    tier = body.service_tier and body.tier()
    head = Head("chatcmpl", "chat.completion.chunk", model.id, tier=tier)

    def start() -> Completion:
        choices = Choices(model.engine, requests, per_prompt=n)
        if plan.is_plain:
            chunks = _plain_chunks(head, choices)
        else:
            chunks = _chunks(head, choices, [plan.answer() for _ in range(n)])
        return Completion(choices, chunks, partial(_fold, body=body))

    return start


async def prompt_of(models: Session, body: ChatCompletionRequest) -> str:
    """The prompt that the chat would have. Raises as :func:`plan` does."""
    check_chat(body)
    asked, tools = asked_for(body), read_tools(body)
    check_together(asked, tools)
    model = await models.get(body.model or models.default_id, "chat")
    return (await plan_chat(body, model, asked, tools)).prompt


async def _plain_chunks(head: Head, choices: Choices) -> Chunks:
    """Of a model that only answers: its text as it comes."""
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


async def _chunks(head: Head, choices: Choices, answers: Sequence[Answer]) -> Chunks:
    """Of a model that thinks or calls. Logprobs go with the last delta of their text, or with the
    next where there is none yet."""
    started: set[int] = set()
    held: defaultdict[int, list[TokenLogprob]] = defaultdict(list)
    async with aclosing(choices.events()) as events:
        async for index, event in events:
            answer = answers[index]
            if index not in started:
                started.add(index)
                yield head.chunk(_choice(index, {"role": "assistant", "content": None}))
            if isinstance(event, TextDelta):
                held[index] += event.logprobs
                deltas = answer.feed(event.text, event.n_tokens)
                for delta in deltas[:-1]:
                    yield head.chunk(_choice(index, delta))
                for delta in deltas[-1:]:
                    choice = _choice(index, delta, logprobs=chat_logprobs(held.pop(index)))
                    yield with_timings(head.chunk(choice), event.timings)
            elif isinstance(event, PromptProgress):
                yield with_progress(head.chunk(_choice(index, {})), event)
            elif isinstance(event, Finished):
                for delta in answer.finish(event.reason):
                    yield head.chunk(_choice(index, delta))
                logprobs = chat_logprobs(held.pop(index, ()))
                choice = _choice(index, {}, answer.reason(event.reason), logprobs)
                yield with_timings(head.chunk(choice), event.timings)
    yield head.last(choices.usage(), sum(answer.n_reasoning for answer in answers))


def _choice(
    index: int,
    delta: dict[str, Any],
    reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


async def _fold(chunks: Chunks, body: ChatCompletionRequest) -> dict[str, Any]:
    messages: defaultdict[int, MessageFold] = defaultdict(MessageFold)
    whole = await gather(chunks, lambda choice: messages[choice["index"]].add(choice["delta"]))
    without_tokens: dict[str, Any] | None = None
    if body.n_logprobs() is not None:
        without_tokens = {"content": [], "refusal": None}
    choices = [
        {
            "index": index,
            "message": messages[index].message(),
            "logprobs": whole.logprobs.get(index, without_tokens),
            "finish_reason": reason,
        }
        for index, reason in whole.reasons.items()
    ]
    completion = {**whole.last, "object": "chat.completion", "choices": choices}
    if body.metadata is not None:
        completion["metadata"] = body.metadata
    return completion
