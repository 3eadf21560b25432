"""llama-server's routes of tokens and templates, over the fake backend."""

from __future__ import annotations

from typing import Any

import pytest
from clients import MESSAGES, MODEL, OpenRequest, serving
from fakes import BOS, CONTROL, EOG, N_VOCAB, FakeBackend, fake_app

pytestmark = pytest.mark.anyio


async def post(path: str, body: dict[str, Any], **backend: Any) -> Any:
    async with serving(FakeBackend(**backend)) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_tokens_are_those_of_the_text_and_specials_are_parsed() -> None:
    content = "ab<|control|>"
    assert await post("/tokenize", {"content": content}) == {"tokens": [97, 98, CONTROL]}
    plain = await post("/v1/tokenize", {"content": content, "parse_special": False})
    assert plain == {"tokens": list(content.encode())}


async def test_the_begin_of_text_is_added_if_asked_for() -> None:
    for add_special, tokens in ((False, [97]), (None, [97]), (True, [BOS, 97])):
        body = {"content": "a", "add_special": add_special}
        assert await post("/tokenize", body, add_bos=True) == {"tokens": tokens}


async def test_pieces_are_text_or_the_bytes_of_a_part_of_a_character() -> None:
    answer = await post("/tokenize", {"content": "aé<|control|>", "with_pieces": True})
    assert answer["tokens"] == [
        {"id": 97, "piece": "a"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
        {"id": CONTROL, "piece": "<|control|>"},
    ]


async def test_texts_and_token_ids_can_be_mixed() -> None:
    body = {"content": ["a", EOG, "b"], "add_special": True, "model": MODEL}
    assert await post("/tokenize", body, add_bos=True) == {"tokens": [BOS, 97, EOG, 98]}
    assert await post("/tokenize", {"content": []}) == {"tokens": []}


async def test_a_long_text_is_tokenized_whole() -> None:
    answer = await post("/tokenize", {"content": "ab" * 50_000})
    assert answer["tokens"] == [97, 98] * 50_000


async def test_detokenizing_is_the_way_back_control_tokens_included() -> None:
    content = "aé<|control|>b"
    tokens = (await post("/tokenize", {"content": content}))["tokens"]
    assert await post("/v1/detokenize", {"tokens": tokens}) == {"content": content}
    assert await post("/detokenize", {"tokens": []}) == {"content": ""}
    assert await post("/detokenize", {"tokens": [0xC3]}) == {"content": "\ufffd"}


async def test_a_prompt_is_what_the_template_makes_of_the_messages() -> None:
    assert await post("/apply-template", {"messages": MESSAGES}) == {
        "prompt": "<user>hello<assistant>"
    }
    without = {"messages": MESSAGES, "add_generation_prompt": False, "model": MODEL}
    assert await post("/v1/apply-template", without) == {"prompt": "<user>hello"}


async def test_a_prompt_can_end_inside_the_last_message() -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "I am"}]
    body = {"messages": messages, "continue_final_message": True}
    assert await post("/apply-template", body) == {"prompt": "<user>hello<assistant>I am"}


async def test_tools_and_variables_reach_the_template() -> None:
    template = (
        "{{ tools | tojson }}{{ mood }}" + "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {"messages": MESSAGES, "tools": [tool], "chat_template_kwargs": {"mood": "merry"}}
    answer = await post("/apply-template", body, chat_template=template)
    assert '"name": "f"' in answer["prompt"] and "merry" in answer["prompt"]


async def test_a_chat_body_as_it_is_sent_gives_its_prompt() -> None:
    body = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "stream": True, "store": False}
    assert (await post("/apply-template", body))["prompt"] == "<user>hello<assistant>"


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "content", "missing_required_parameter"),
        ("/tokenize", {"content": 1}, "content", "invalid_type"),
        ("/tokenize", {"content": ["a", N_VOCAB]}, "content", "invalid_value"),
        ("/tokenize", {"content": "a", "with_piece": True}, "with_piece", "unknown_parameter"),
        ("/tokenize", {"content": "a", "model": "other"}, "model", "model_not_found"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": [N_VOCAB]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": [10**30]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.[0]", "invalid_type"),
        ("/apply-template", {}, "messages", "missing_required_parameter"),
        ("/apply-template", {"messages": []}, "messages", "invalid_value"),
        (
            "/apply-template",
            {"messages": MESSAGES, "store": True},
            "store",
            "unsupported_parameter",
        ),
        (
            "/apply-template",
            {
                "messages": MESSAGES,
                "add_generation_prompt": True,
                "continue_final_message": True,
            },
            "continue_final_message",
            "invalid_parameter_combination",
        ),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    path: str, body: dict[str, Any], param: str, code: str
) -> None:
    async with serving() as client:
        response = await client.post(path, json=body)
    assert response.status_code == (404 if code == "model_not_found" else 400)
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)


async def test_a_model_that_cannot_chat_has_no_template_to_apply() -> None:
    async with serving(FakeBackend(chat_template=None)) as client:
        response = await client.post("/apply-template", json={"messages": MESSAGES})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_model"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template"])
async def test_keys_and_body_limits_hold_here_too(path: str) -> None:
    async with serving(api_key="secret") as client:
        assert (await client.post(path, json={})).status_code == 401
    app = fake_app(max_body_bytes=50)
    request = OpenRequest(app, path, {"content": "a" * 100})
    await request.run()
    assert request.status == 413
    await app.aclose()
