"""Tools and response formats on the real model, by the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field
from test_input_grammar import LIST, PATCH, SUM
from tool_calls import WEATHER, Matcher, tool

import openai_local

pytestmark = [pytest.mark.model, pytest.mark.anyio]

STRING, INTEGER, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "boolean"))
SHORT = {"type": "string", "maxLength": 12}
# Bounded, so that a call ends within the tokens that it has, whatever a small model makes of it.
TOOLS = [
    tool("get_weather", city=SHORT, days={**INTEGER, "maximum": 9, "optional": True}),
    tool("add", numbers={"type": "array", "items": {**INTEGER, "maximum": 99}, "maxItems": 4}),
    tool("now"),
    tool("set_light", room={"enum": ["kitchen", "hall"]}, on=BOOLEAN),
    tool("book", date={"type": "string", "format": "date"}, nights={**INTEGER, "maximum": 30}),
    tool("search", query=SHORT, limit={**INTEGER, "minimum": 1, "optional": True}),
    tool("send", to={"type": "array", "items": SHORT, "maxItems": 2}, body=SHORT),
    tool("convert", amount={"type": "number"}, unit={"type": ["string", "null"], "maxLength": 4}),
    tool("place", at={
        "type": "object", "properties": {"x": INTEGER, "y": INTEGER}, "required": ["x", "y"],
        "additionalProperties": False,
    }),
    tool("pick", one={"anyOf": [INTEGER, {"enum": ["first", "last"]}]}),
    tool("call", number={"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"}),
    tool("tag", id={"type": "string", "format": "uuid"}, color={"const": "red"}),
]  # fmt: skip


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def client_of(model: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    app = openai_local.app(model, model_id="smollm2", n_ctx=2048, n_parallel=12)
    async with app.lifespan():
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        http = httpx.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="none", http_client=http, max_retries=0
        ) as client:
            yield client


def fields(name: str, **more: Any) -> dict[str, Any]:
    said = f"Use the tool {name}, please."
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": said}],
        "max_tokens": 200,
        "seed": 1,
        **more,
    }


async def called(client: openai.AsyncOpenAI, asked: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and arguments of a whole answer, and of a streamed one."""
    completion = await client.chat.completions.create(**asked)
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls", choice
    calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
    streamed: dict[int, list[str]] = {}
    reason = None
    async for chunk in await client.chat.completions.create(stream=True, **asked):
        reason = chunk.choices[0].finish_reason
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.function is not None
            call = streamed.setdefault(part.index, [part.function.name or "", ""])
            call[1] += part.function.arguments or ""
    assert reason == "tool_calls"
    return calls + [(name, arguments) for name, arguments in streamed.values()]


async def test_a_call_that_must_come_is_always_valid(smollm2: Path) -> None:
    seen = set()
    async with client_of(smollm2) as client:

        async def one(asked_for: dict[str, Any]) -> None:
            function = asked_for["function"]
            pair = [asked_for, TOOLS[0] if asked_for is not TOOLS[0] else TOOLS[1]]
            asked = fields(function["name"], tools=pair, tool_choice="required",
                           parallel_tool_calls=False)  # fmt: skip
            calls = await called(client, asked)
            assert len(calls) == 2
            schemas = {t["function"]["name"]: t["function"]["parameters"] for t in pair}
            for name, arguments in calls:
                seen.add(name)
                jsonschema.validate(json.loads(arguments), schemas[name])

        async with anyio.create_task_group() as group:
            for asked_for in TOOLS:
                group.start_soon(one, asked_for)
    assert len(seen) >= 4, seen


class Pet(BaseModel):
    name: str = Field(max_length=10)
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)


async def test_the_official_client_parses_into_a_pydantic_model(smollm2: Path) -> None:
    async with client_of(smollm2) as client:
        asked = fields("none", messages=[{"role": "user", "content": "Describe a pet as JSON."}])
        completion = await client.chat.completions.parse(response_format=Pet, **asked)
        pet = completion.choices[0].message.parsed
        assert isinstance(pet, Pet)
        async with client.chat.completions.stream(response_format=Pet, **asked) as stream:
            kinds = {event.type async for event in stream}
            streamed = await stream.get_final_completion()
        assert isinstance(streamed.choices[0].message.parsed, Pet)
        assert {"content.delta", "content.done", "chunk"} <= kinds


async def test_the_official_client_streams_a_call_by_its_helper(smollm2: Path) -> None:
    weather = json.loads(json.dumps(WEATHER))
    weather["function"]["strict"] = True
    choice = {"type": "function", "function": {"name": "get_weather"}}
    async with client_of(smollm2) as client:
        asked = fields("get_weather", tools=[weather], tool_choice=choice)
        async with client.chat.completions.stream(**asked) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.name == "get_weather"
    assert isinstance(call.function.parsed_arguments, dict)
    assert "city" in call.function.parsed_arguments


async def test_a_custom_tools_input_is_always_of_its_grammar(smollm2: Path) -> None:
    ended = 0
    async with client_of(smollm2) as client:
        for name, definition in (("patch", PATCH), ("numbers", LIST), ("add_up", SUM)):
            grammar = {"syntax": "lark", "definition": definition}
            custom = {"name": name, "format": {"type": "grammar", "grammar": grammar}}
            asked = fields(name, tools=[{"type": "custom", "custom": custom}], temperature=1.2,
                           tool_choice={"type": "custom", "custom": {"name": name}})  # fmt: skip
            for seed in range(2):
                completion = await client.chat.completions.create(**{**asked, "seed": seed})
                (choice,) = completion.choices
                (call,) = choice.message.tool_calls or ()
                assert call.type == "custom" and call.custom.name == name
                text = call.custom.input
                # What is ignored may end a text within a call, which alone llguidance has not.
                text = text if name == "patch" else text.rstrip()
                taken, ends = Matcher().matched(definition, text)
                assert taken == text
                ended += ends
                assert ends or choice.finish_reason == "length"
    assert ended
