"""The work that servers really see, each as one coroutine. Starts no server and prints nothing.

All prompts come from the round's seed, so that every server gets the same ones and none that an
earlier round has left in a cache.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from load import (
    Endpoint,
    Sample,
    Shape,
    Transcript,
    chat,
    chat_body,
    drive,
    prompts,
    read_transcript,
)

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is asked, and the model to ask it for."""

    endpoint: Endpoint
    model: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """``wall_s`` from the first request to the last answer; times of ``others`` by their name."""

    wall_s: float
    samples: list[Sample]
    others: dict[str, float] = field(default_factory=dict)


Workload = Callable[[Target, str], Coroutine[Any, Any, Outcome]]


async def chats(target: Target, seed: str, clients: int) -> Outcome:
    """Each client asks four times; prompts of 80 words, answers of 32 to 96 tokens."""
    shape = Shape(spread=0.5)
    texts = prompts(4 * clients, 80, seed)
    bodies = [chat_body(target.model, text, i, shape) for i, text in enumerate(texts)]
    return await _driven(target, bodies, clients)


async def shared_prefix(target: Target, seed: str) -> Outcome:
    """24 requests, 8 at a time, that begin with the same system prompt of 1,200 words."""
    system = prompts(1, 1200, seed)[0]
    bodies = [
        chat_body(target.model, text, i, Shape()) for i, text in enumerate(prompts(24, 10, seed))
    ]
    for body in bodies:
        body["messages"].insert(0, {"role": "system", "content": system})
    return await _driven(target, bodies, 8)


async def turns(target: Target, seed: str) -> Outcome:
    """Four conversations at once, five turns each, every turn with all that was said before."""
    samples: list[Sample] = []

    async def conversation(number: int) -> None:
        messages: list[dict[str, str]] = []
        for turn, text in enumerate(prompts(5, 100, f"{seed}/{number}")):
            messages.append({"role": "user", "content": text})
            body = chat_body(target.model, text, turn, Shape()) | {"messages": messages}
            sample, answer = await _ask(target, body)
            samples.append(sample)
            messages.append({"role": "assistant", "content": answer})

    start_s = time.perf_counter()
    await asyncio.gather(*(conversation(number) for number in range(4)))
    return Outcome(time.perf_counter() - start_s, samples)


async def storm(target: Target, seed: str) -> Outcome:
    """Four clients stream short answers while four prompts of 1,500 words come, 2 s apart.

    The samples are the short ones'; ``long`` is the time until the last long one has its answer.
    """
    samples: list[Sample] = []
    ended = asyncio.Event()

    async def short(number: int) -> None:
        texts = prompts(1000, 20, f"{seed}/{number}")
        while not ended.is_set():
            sample, _ = await _ask(target, chat_body(target.model, texts.pop(), number, Shape()))
            samples.append(sample)

    async def long(number: int, text: str) -> float:
        await asyncio.sleep(1 + 2 * number)
        arrived_s = time.perf_counter()
        shape = Shape(max_tokens=16)
        sample, _ = await _ask(target, chat_body(target.model, text, number, shape))
        if sample.error is not None:
            samples.append(sample)
        return time.perf_counter() - arrived_s

    start_s = time.perf_counter()
    clients = [asyncio.create_task(short(number)) for number in range(4)]
    longs = prompts(4, 1500, seed)
    times = await asyncio.gather(*(long(number, text) for number, text in enumerate(longs)))
    wall_s = time.perf_counter() - start_s
    ended.set()
    await asyncio.gather(*clients)
    return Outcome(wall_s, samples, {"long": max(times)})


async def choices(target: Target, seed: str) -> Outcome:
    """Eight choices of one prompt of 600 words."""
    body = chat_body(target.model, prompts(1, 600, seed)[0], 0, Shape()) | {"n": 8}
    start_s = time.perf_counter()
    sample, _ = await _ask(target, body)
    return Outcome(time.perf_counter() - start_s, [sample])


async def crowd(target: Target, seed: str) -> Outcome:
    """64 requests at once, where 32 fit."""
    bodies = [
        chat_body(target.model, text, i, Shape(spread=0.5))
        for i, text in enumerate(prompts(64, 80, seed))
    ]
    return await _driven(target, bodies, 64)


WORKLOADS: dict[str, Workload] = {
    "chat-1": lambda target, seed: chats(target, seed, 1),
    "chat-8": lambda target, seed: chats(target, seed, 8),
    "chat-32": lambda target, seed: chats(target, seed, 32),
    "shared": shared_prefix,
    "turns": turns,
    "storm": storm,
    "choices": choices,
    "crowd": crowd,
}


async def _driven(target: Target, bodies: Sequence[dict[str, Any]], clients: int) -> Outcome:
    result = await drive(target.endpoint, bodies, clients, TIMEOUT_S, server="", index=0)
    return Outcome(result.wall_s, result.samples)


async def _ask(target: Target, body: dict[str, Any]) -> tuple[Sample, str]:
    """One answer's figures and its text, of the first choice."""
    try:
        transcript = await asyncio.wait_for(chat(target.endpoint, body), TIMEOUT_S)
        return read_transcript(transcript), _text(transcript)
    # Whatever a server under load does wrong is a result, not the end of the run.
    except Exception as error:
        return Sample(error=f"{type(error).__name__}: {error}"), ""


def _text(transcript: Transcript) -> str:
    parts: list[str] = []
    for _, datum in transcript.data:
        if datum.strip() != b"[DONE]":
            for choice in json.loads(datum).get("choices") or []:
                if choice["index"] == 0:
                    parts.append(choice["delta"].get("content") or "")
    return "".join(parts)
