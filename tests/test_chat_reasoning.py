"""Thoughts in POST /chat/completions, over a fake that says what it is told to say."""

from __future__ import annotations

from typing import Any

import pytest
from clients import MESSAGES, MODEL, events_of, serving
from fakes import FakeBackend, spelling
from test_chat_formats import THINKING
from test_chat_tools import HERMES, put_together
from tool_calls import TOOLS

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
SAID = "<think>\nIt may be four.\n</think>\n\nFour."
OPENING = THINKING.replace("<assistant>", "<assistant><think>\n")
# A control token of the fake's is the mark.
CONTROL = THINKING.replace("</think>", "<|control|>")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "temperature": 0, **fields}


def says(text: str, template: str = THINKING) -> FakeBackend:
    return FakeBackend(n_ctx=4096, n_batch=512, next_token=spelling(text), chat_template=template)


def prompt_of(backend: FakeBackend) -> str:
    return bytes(t % 256 for t in backend.slots[0]).decode()


async def test_a_thought_is_told_apart_and_its_tokens_are_counted() -> None:
    async with serving(says(SAID)) as client:
        whole = (await client.post(PATH, json=body())).json()
        options = {"include_usage": True}
        streamed = await client.post(PATH, json=body(stream=True, stream_options=options))
    message = whole["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Four.", "It may be four.")
    details = whole["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == len("<think>\nIt may be four.\n</think>")
    *chunks, last = events_of(streamed)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "It may be four."
    assert "".join(d.get("content") or "" for d in deltas) == "Four."
    assert last["usage"] == whole["usage"] | {
        "prompt_tokens_details": last["usage"]["prompt_tokens_details"]
    }


async def test_a_prompt_that_ends_within_a_thought_is_seen() -> None:
    async with serving(says("<think>\nHm.</think>Four.", OPENING)) as client:
        whole = (await client.post(PATH, json=body())).json()
        cut = (await client.post(PATH, json=body(max_tokens=2))).json()
    message = whole["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Four.", "Hm.")
    details = whole["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == len("Hm.</think>")
    (choice,) = cut["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "", "refusal": None, "reasoning_content": "Hm",
    }  # fmt: skip
    assert choice["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


async def test_a_mark_that_is_a_control_token_is_seen_and_no_part_of_the_text() -> None:
    def next_token(tokens: Any) -> int:
        said = [*b"<think>Hm.", 258, *b"Four.", 256]
        start = bytes(t % 256 for t in tokens).rindex(b"<assistant>") + len(b"<assistant>")
        return said[min(len(tokens) - start, len(said) - 1)]

    backend = FakeBackend(n_ctx=4096, next_token=next_token, chat_template=CONTROL)
    async with serving(backend) as client:
        whole = (await client.post(PATH, json=body(logprobs=True))).json()
        as_text = (await client.post(PATH, json=body(reasoning_format="none"))).json()
    message = whole["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Four.", "Hm.")
    tokens = [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
    assert "".join(tokens) == "<think>Hm.<|control|>Four."
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 11
    assert as_text["choices"][0]["message"]["content"] == "<think>Hm.<|control|>Four."


async def test_a_thought_before_a_call() -> None:
    template = HERMES.replace(
        "{{ m.content or '' }}",
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content or '' }}",
    )
    said = '<think>Look.</think>\n<tool_call>\n{"name": "add", "arguments": {"numbers": []}}\n'
    for choice in ("auto", "required"):
        async with serving(says(said + "</tool_call>", template)) as client:
            asked = body(tools=TOOLS, tool_choice=choice)
            whole = (await client.post(PATH, json=asked)).json()
            streamed = await client.post(PATH, json={**asked, "stream": True})
        message = whole["choices"][0]["message"]
        assert message["reasoning_content"] == "Look."
        assert message["tool_calls"][0]["function"]["arguments"] == '{"numbers": []}'
        assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
        (pieces,) = put_together(events_of(streamed)).values()
        assert pieces["calls"][0]["function"]["name"] == "add"


async def test_an_earlier_thought_reaches_the_template() -> None:
    backend = says("Yes.")
    for name in ("reasoning_content", "reasoning"):
        history = [*MESSAGES, {"role": "assistant", "content": "4", name: "Hm"}, *MESSAGES]
        async with serving(backend) as client:
            assert (await client.post(PATH, json=body(messages=history))).status_code == 200
        assert "<think>Hm</think>4" in prompt_of(backend)
        backend.reopen()


EFFORT = "{{ messages[-1].content }}[{{ reasoning_effort or 'unset' }}]<assistant>"


@pytest.mark.parametrize(
    ("effort", "template", "told"),
    [
        ("high", EFFORT, "[high]"),
        ("medium", EFFORT, "[medium]"),
        (None, EFFORT, "[unset]"),
        ("none", THINKING, "<think></think>"),
        ("high", THINKING, "<user>hello<assistant>"),
        ("none", "{{ messages[-1].content }}<assistant>", "hello"),
        ("medium", "{{ messages[-1].content }}<assistant>", "hello"),
    ],
)
async def test_the_effort_reaches_templates_that_know_it(
    effort: str | None, template: str, told: str
) -> None:
    backend = says("Yes.", template)
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(reasoning_effort=effort))
    assert response.status_code == 200, response.text
    assert told in prompt_of(backend)


@pytest.mark.parametrize(
    ("fields", "template", "param"),
    [
        ({"reasoning_effort": "high"}, "{{ messages[-1].content }}<assistant>", "reasoning_effort"),
        ({"reasoning_effort": "huge"}, EFFORT, "reasoning_effort"),
        ({"chat_template_kwargs": {"nope": 1}}, THINKING, "chat_template_kwargs.nope"),
        ({"chat_template_kwargs": {"messages": []}}, THINKING, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, EFFORT,
         "chat_template_kwargs.enable_thinking"),
        ({"continue_final_message": True, "add_generation_prompt": True}, THINKING,
         "continue_final_message"),
        ({"reasoning_budget_tokens": -2}, THINKING, "reasoning_budget_tokens"),
        ({"reasoning_budget_tokens": 2, "thinking_budget_tokens": 2}, THINKING,
         "thinking_budget_tokens"),
        ({"reasoning_format": "weird"}, THINKING, "reasoning_format"),
    ],
)  # fmt: skip
async def test_what_has_no_effect_is_refused(
    fields: dict[str, Any], template: str, param: str
) -> None:
    async with serving(says("", template)) as client:
        response = await client.post(PATH, json=body(**fields))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_what_a_model_cannot_do_need_not_be_done() -> None:
    async with serving(says("a", "{{ messages[-1].content }}<assistant>")) as client:
        asked = body(chat_template_kwargs={"enable_thinking": False})
        assert (await client.post(PATH, json=asked)).status_code == 200


async def test_the_last_message_is_gone_on_with() -> None:
    history = [*MESSAGES, {"role": "assistant", "content": "One, two"}]
    backend = says(", three.")
    n_prompt = len("<user>hello<assistant>One, two")
    backend._next_token = spelling(", three.", n_prompt)
    async with serving(backend) as client:
        asked = body(messages=history, continue_final_message=True)
        response = await client.post(PATH, json=asked)
    assert response.json()["choices"][0]["message"]["content"] == ", three."
    assert prompt_of(backend).startswith("<user>hello<assistant>One, two, three.")


async def test_without_a_generation_prompt_the_turn_is_the_models_to_open() -> None:
    backend = says("")
    backend._next_token = spelling("<assistant>x", len("<user>hello"))
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(add_generation_prompt=False))
    assert response.json()["choices"][0]["message"]["content"] == "<assistant>x"


@pytest.mark.parametrize("budget", [0, 1, 5, 999, -1])
@pytest.mark.parametrize("bound", [False, True])
async def test_a_thought_ends_when_its_tokens_are_used_up(budget: int, bound: bool) -> None:
    def next_token(tokens: Any) -> int:
        text = bytes(t % 256 for t in tokens).decode()
        said = text.rpartition("<assistant>")[2]
        if len(said) < 7:
            return b"<think>"[len(said)]
        if "</think>" in said:
            answer = said.partition("</think>")[2]
            return [*b"[0]", 256][len(answer)]
        thought = said[7:]
        if len(thought) < 8:
            return 104  # h
        return b"</think>"[len(thought) - 8]

    backend = FakeBackend(n_ctx=4096, next_token=next_token, chat_template=THINKING)
    format = {"structured_outputs": {"regex": "\\[[0-9]\\]"}} if bound else {}
    for name in ("reasoning_budget_tokens", "thinking_budget_tokens"):
        async with serving(backend) as client:
            asked = body(max_tokens=60, **{name: budget}, **format)
            whole = (await client.post(PATH, json=asked)).json()
            told = (await client.post(PATH, json={**asked, "logprobs": True})).json()
        backend.reopen()
        message = whole["choices"][0]["message"]
        n_thought = budget if 0 <= budget < 8 else 8
        assert message.get("reasoning_content", "") == "h" * n_thought
        assert message["content"] == "[0]"
        assert told["choices"][0]["message"] == message
        n_marks = len("<think></think>")
        details = whole["usage"]["completion_tokens_details"]
        assert details["reasoning_tokens"] == n_thought + n_marks


async def test_a_thought_that_the_prompt_opened_ends_so_too_and_so_does_one_before_a_call() -> None:
    async with serving(says("<think>\n" + "h" * 99, OPENING)) as client:
        asked = body(reasoning_budget_tokens=4, max_tokens=14)
        whole = (await client.post(PATH, json=asked)).json()
        tools = (
            await client.post(
                PATH, json=body(reasoning_budget_tokens=4, tools=TOOLS, tool_choice="required",
                                max_tokens=300),
            )
        ).json()  # fmt: skip
    assert whole["choices"][0]["message"]["reasoning_content"] == "hhhh"
    assert whole["choices"][0]["message"]["content"] == "hh"
    message = tools["choices"][0]["message"]
    assert message["reasoning_content"] == "hhhh"
    assert message["tool_calls"]
