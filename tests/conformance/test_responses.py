"""Every answer and every chunk of every route, against the official types and the schema."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from clients import MESSAGES, MODEL, events_of, serving
from fakes import FakeBackend, spelling
from shapes import SHAPES, SPECIFICATION, check, check_error, problems

pytestmark = pytest.mark.anyio

N_CTX = 1024  # tools are described in the prompt, a token a byte
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
TEXT = {"model": MODEL, "prompt": "hello", "max_tokens": 5, "temperature": 0}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "metric": {"type": "boolean"}},
            "required": ["city", "metric"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "weather",
        "strict": True,
        "schema": WEATHER["function"]["parameters"],
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}
CUSTOM = {
    "type": "custom",
    "custom": {
        "name": "code",
        "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[ab]{3}"}},
    },
}
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [NAMED]},
}
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

REQUIRED = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 100}

CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one that ends by itself": {"stop": ["b"], "max_tokens": 200},
    "choices": {"n": 3},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
    "logprobs without alternatives": {"logprobs": True},
    "labels": {"metadata": {"a": "b"}, "service_tier": "flex", "user": "u", "seed": 1},
    "timings": {"timings_per_token": True},
    "a text format": {"response_format": {"type": "text"}},
    "a JSON object": {"response_format": {"type": "json_object"}, "max_tokens": 30},
    "a schema": {"response_format": FORMAT, "max_tokens": 100},
    "a schema and logprobs": {"response_format": FORMAT, "max_tokens": 100, "logprobs": True},
    "a required call": {**REQUIRED, "parallel_tool_calls": False},
    "as many calls as fit": REQUIRED,
    "a named call": {"tools": [WEATHER], "tool_choice": NAMED, "max_tokens": 100},
    "a call and logprobs": {
        **REQUIRED, "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2
    },
    "calls in choices": {"tools": [WEATHER], "tool_choice": NAMED, "max_tokens": 100, "n": 2},
    "a cut call": {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 3},
    "a custom call": {
        "tools": [WEATHER, CUSTOM], "tool_choice": {"type": "custom", "custom": {"name": "code"}},
        "max_tokens": 100,
    },
    "an allowed call": {
        "tools": [CUSTOM, WEATHER], "tool_choice": ALLOWED, "parallel_tool_calls": False,
        "max_tokens": 100,
    },
    "tools that are not used": {"tools": [WEATHER], "tool_choice": "none"},
    "tools at will": {"tools": [WEATHER], "parallel_tool_calls": False},
    "a call of before": {
        "functions": [{k: v for k, v in WEATHER["function"].items() if k != "strict"}],
        "function_call": {"name": "weather"},
        "max_tokens": 100,
    },
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prompt but tokens": {"prompt": [104, 105]},
    "several prompts": {"prompt": ["a", "b"], "n": 2},
    "echo": {"echo": True},
    "echo alone": {"echo": True, "max_tokens": 0},
    "logprobs": {"logprobs": 2},
    "no alternatives": {"logprobs": 0},
    "echo with logprobs": {"echo": True, "logprobs": 2},
    "the best": {"best_of": 3, "n": 2},
    "timings": {"timings_per_token": True},
    "an end": {"stop": "b", "max_tokens": 200},
}
WRONG: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no model": ("POST", "/chat/completions", {"messages": MESSAGES}),
    "another model": ("POST", "/chat/completions", {**CHAT, "model": "gpt-9"}),
    "a wrong type": ("POST", "/chat/completions", {**CHAT, "temperature": "hot"}),
    "an unknown parameter": ("POST", "/completions", {**TEXT, "colour": "red"}),
    "what is refused": ("POST", "/chat/completions", {**CHAT, "store": True}),
    "a long prompt": ("POST", "/completions", {**TEXT, "prompt": "x" * 5000}),
    "no input": ("POST", "/embeddings", {"model": MODEL}),
    "an unknown route": ("POST", "/chat", {}),
    "a wrong method": ("GET", "/chat/completions", {}),
    "an unknown model": ("GET", "/models/gpt-9", {}),
}


@pytest.mark.parametrize("case", CHATS)
async def test_a_chat_completion(case: str) -> None:
    async with serving(FakeBackend(n_ctx=N_CTX)) as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, **CHATS[case]})
    assert response.status_code == 200, response.text
    value = response.json()
    check("chat", value)
    assert len(value["choices"]) == CHATS[case].get("n", 1)
    for choice in value["choices"]:
        check_choice(case, choice["message"], choice["finish_reason"])


@pytest.mark.parametrize("case", CHATS)
async def test_every_chunk_of_a_chat_completion(case: str) -> None:
    async with serving(FakeBackend(n_ctx=N_CTX)) as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, **CHATS[case], **STREAM})
    assert response.status_code == 200, response.text
    chunks = events_of(response)
    for chunk in chunks:
        check("chat chunk", chunk)
    *others, last = chunks
    assert last["usage"] and not last["choices"]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in others)
    for index in range(CHATS[case].get("n", 1)):
        choices = [c["choices"][0] for c in others if c["choices"][0]["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
        message = accumulated([choice["delta"] for choice in choices])
        check_choice(case, message, choices[-1]["finish_reason"])


def accumulated(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that ``deltas`` are of, as clients put it together."""
    message: dict[str, Any] = {"content": None}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for key in ("content", "reasoning_content"):
            if delta.get(key) is not None:
                message[key] = (message.get(key) or "") + delta[key]
        if "function_call" in delta:
            append(message.setdefault("function_call", {}), delta["function_call"])
        for part in delta.get("tool_calls", ()):
            kind = "custom" if "custom" in part else "function"
            first = part["index"] not in calls
            # The name comes first, and whole.
            assert first == bool(part.get("id")) == bool(part[kind].get("name"))
            assert part.get("type") == (kind if first else None)
            append(calls.setdefault(part["index"], {}).setdefault(kind, {}), part[kind])
    if calls:
        assert sorted(calls) == list(range(len(calls)))
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


def append(whole: dict[str, str], part: dict[str, str]) -> None:
    for key, piece in part.items():
        whole[key] = whole.get(key, "") + piece


def check_choice(case: str, message: dict[str, Any], reason: str) -> None:
    """What the grammar guarantees, whatever the model wants."""
    if case in (
        "a required call", "a named call", "a call and logprobs", "calls in choices",
        "an allowed call",
    ):  # fmt: skip
        (call,) = message["tool_calls"]
        assert call["function"]["name"] == "weather"
        check_weather(call["function"]["arguments"])
        assert reason == "tool_calls"
    elif case == "a custom call":
        (call,) = message["tool_calls"]
        assert call["custom"]["name"] == "code" and re.fullmatch("[ab]{3}", call["custom"]["input"])
    elif case == "as many calls as fit":
        check_weather(message["tool_calls"][0]["function"]["arguments"])
    elif case == "a call of before":
        check_weather(message["function_call"]["arguments"])
    elif case in ("a schema", "a schema and logprobs"):
        check_weather(message["content"])
        assert reason == "stop"
    elif case == "a cut call":
        assert reason == "length"
    else:
        assert not message.get("tool_calls")
        assert message["content"]


def check_weather(text: str) -> None:
    value = json.loads(text)
    assert value.keys() == {"city", "metric"}
    assert value["city"] in ("Paris", "Rome") and isinstance(value["metric"], bool)


@pytest.mark.parametrize("more", [{}, STREAM], ids=["whole", "stream"])
async def test_reasoning_is_no_content(more: dict[str, Any]) -> None:
    backend = FakeBackend(
        n_ctx=N_CTX, chat_template=THINKING, next_token=spelling("<think>Hm.</think>Yes.")
    )
    async with serving(backend) as client:
        body = {**CHAT, "max_tokens": 100, **more}
        response = await client.post("/v1/chat/completions", json=body)
    if not more:
        check("chat", response.json())
        (choice,) = response.json()["choices"]
        message = choice["message"]
    else:
        *chunks, last = events_of(response)
        for chunk in chunks:
            check("chat chunk", chunk)
        message = accumulated([chunk["choices"][0]["delta"] for chunk in chunks])
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


async def test_the_progress_of_a_long_prompt() -> None:
    backend = FakeBackend(n_ctx=1024)
    messages = [{"role": "user", "content": "x" * 300}]
    async with serving(backend) as client:
        response = await client.post(
            "/v1/chat/completions",
            json={**CHAT, **STREAM, "messages": messages, "return_progress": True},
        )
    chunks = events_of(response)
    for chunk in chunks:
        check("chat chunk", chunk)
    assert any("prompt_progress" in chunk for chunk in chunks)


@pytest.mark.parametrize("case", TEXTS)
async def test_a_completion(case: str) -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json={**TEXT, **TEXTS[case]})
    assert response.status_code == 200, response.text
    check("completion", response.json())
    assert all(choice["finish_reason"] for choice in response.json()["choices"])


@pytest.mark.parametrize("case", [case for case in TEXTS if case != "the best"])
async def test_every_chunk_of_a_completion(case: str) -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json={**TEXT, **TEXTS[case], **STREAM})
    assert response.status_code == 200, response.text
    chunks = events_of(response)
    for chunk in chunks:
        check("completion chunk", chunk)
    assert chunks[-1]["usage"] and not chunks[-1]["choices"]


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("given", ["a", ["a", "bc"], [1, 2], [[1], [2, 3]]])
async def test_embeddings(encoding: str, given: Any) -> None:
    body = {"model": MODEL, "input": given, "encoding_format": encoding, "dimensions": 4}
    async with serving() as client:
        response = await client.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    check("embeddings", response.json())
    expected = str if encoding == "base64" else list
    assert all(isinstance(item["embedding"], expected) for item in response.json()["data"])


async def test_models() -> None:
    async with serving() as client:
        check("models", (await client.get("/v1/models")).json())
        check("model", (await client.get(f"/v1/models/{MODEL}")).json())


@pytest.mark.parametrize("case", WRONG)
async def test_errors(case: str) -> None:
    method, path, body = WRONG[case]
    async with serving() as client:
        check_error(await client.request(method, f"/v1{path}", json=body))


async def test_a_wrong_key() -> None:
    async with serving(api_key="secret") as client:
        response = await client.get("/v1/models", headers={"authorization": "Bearer guess"})
    check_error(response)
    assert response.status_code == 401


async def test_an_error_within_a_stream() -> None:
    faulty = FakeBackend(faults=lambda batch: -1 if len(batch) == 1 else 0)
    async with serving(faulty) as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *chunks, last = [json.loads(b[6:]) for b in response.text.split("\n\n") if b]
    assert chunks
    for chunk in chunks:
        check("chat chunk", chunk)
    check("error", last)


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_unknown_or_missing_field_does_not_pass(shape: str) -> None:
    """That of these checks themselves."""
    async with serving() as client:
        answers = {
            "chat": (await client.post("/v1/chat/completions", json=CHAT)).json(),
            "chat chunk": events_of(
                await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
            )[1],
            "completion": (await client.post("/v1/completions", json=TEXT)).json(),
            "completion chunk": events_of(
                await client.post("/v1/completions", json={**TEXT, "stream": True})
            )[1],
            "embeddings": (
                await client.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
            ).json(),
            "models": (await client.get("/v1/models")).json(),
            "model": (await client.get(f"/v1/models/{MODEL}")).json(),
            "error": (await client.get("/v1/models/none")).json(),
        }
    good = answers[shape]
    check(shape, good)
    last = [key for key in good if key not in SHAPES[shape][2]][-1]
    for bad in ({**good, "surprise": 1}, {k: v for k, v in good.items() if k != last}):
        if "usage" in good and "surprise" not in bad:
            continue  # which may be left out
        with pytest.raises((ValueError, AssertionError)):
            check(shape, bad)
    if "choices" in good:
        with pytest.raises(ValueError):
            check(shape, {**good, "choices": [{**good["choices"][0], "surprise": 1}]})
    if SPECIFICATION.exists():
        assert list(problems(shape, {}))
