"""Chats whose marks are control tokens, which have no text of their own, some of them ends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
from clients import MESSAGES, MODEL, events_of, serving
from fakes import EOG, FakeBackend
from test_chat_formats import JSON_SCHEMA
from test_chat_tools import HERMES, put_together
from tool_calls import TEMPLATES, TOOLS

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
HARMONY = TEMPLATES / "openai-gpt-oss-120b.jinja"
CONTROLS = (
    "<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>",
    "<|end|>", "<tool_call>", "</tool_call>", "<think>", "</think>",
)  # fmt: skip
ENDS = ("<|call|>", "<|return|>")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 400, **fields}


def saying(text: str) -> FakeBackend:
    """A backend that says ``text``, its marks as control tokens, after any prompt."""
    backend = FakeBackend(n_ctx=8192, n_batch=512, controls=CONTROLS, ends=ENDS)
    said = backend.vocabulary.tokenize(text, add_special=False, parse_special=True)
    n_prompt: list[int] = []

    def next_token(tokens: Sequence[int]) -> int:
        n_prompt.append(len(tokens))  # the first output is that of the prompt's last token
        at = len(tokens) - n_prompt[0]
        return said[at] if at < len(said) else EOG

    backend._next_token = next_token
    return backend


async def answer(text: str, template: str, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choice and the usage, which are the same of a stream."""
    answers = []
    for stream in (False, True):
        backend = saying(text)
        backend.info = dataclasses.replace(backend.info, chat_template=template)
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        async with serving(backend) as client:
            response = await client.post(PATH, json=body(**fields, **options))
        assert response.status_code == 200, response.text
        answers.append(events_of(response) if stream else response.json())
    whole, chunks = answers
    (choice,), usage = whole["choices"], whole["usage"]
    (pieces,) = put_together(chunks).values()
    assert pieces["content"] == (choice["message"]["content"] or "")
    assert pieces["reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"]["completion_tokens_details"] == usage["completion_tokens_details"]
    return choice, usage


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_calls_between_control_tokens(choice: str) -> None:
    said = 'Hm.<tool_call>\n{"name": "add", "arguments": {"numbers": [1]}}\n</tool_call>'
    said = said if choice == "auto" else said.removeprefix("Hm.")
    got, _ = await answer(said, HERMES, tools=TOOLS, tool_choice=choice)
    (call,) = got["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"numbers": [1]}
    assert got["message"]["content"] == ("Hm." if choice == "auto" else None)
    assert got["finish_reason"] == "tool_calls"


async def test_without_tools_control_tokens_of_calls_have_no_text() -> None:
    got, _ = await answer("a<tool_call>b</tool_call>", HERMES)
    assert got["message"]["content"] == "ab"


@pytest.mark.skipif(not HARMONY.exists(), reason="the template is not here")
@pytest.mark.parametrize("fields", [{"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "required"}])
async def test_harmony_thinks_and_calls(fields: dict[str, Any]) -> None:
    thought = "<|channel|>analysis<|message|>They want a sum."
    said = (
        f"{thought}<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"numbers":[1,2]}<|call|>'
    )
    got, usage = await answer(said, HARMONY.read_text(), **fields)
    assert got["message"]["reasoning_content"] == "They want a sum."
    (call,) = got["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"numbers": [1, 2]}
    assert got["finish_reason"] == "tool_calls"
    assert usage["completion_tokens_details"]["reasoning_tokens"] >= len("They want a sum.")


@pytest.mark.skipif(not HARMONY.exists(), reason="the template is not here")
async def test_harmony_answers_in_a_format_behind_its_thought() -> None:
    said = (
        "<|channel|>analysis<|message|>Hm { no.<|end|><|start|>assistant<|channel|>final"
        '<|message|>{"name": "Ann", "age": 22}<|return|>'
    )
    got, _ = await answer(said, HARMONY.read_text(), response_format=JSON_SCHEMA)
    assert got["message"]["reasoning_content"] == "Hm { no."
    assert json.loads(got["message"]["content"]) == {"name": "Ann", "age": 22}
    assert got["finish_reason"] == "stop"
