"""POST /completions over the fake backend."""

from __future__ import annotations

from typing import Any

import pytest
from clients import MODEL, events_of, serving
from fakes import FakeBackend, continuation
from openai.types import Completion

from openai_local.api.generation import _mean_logprob
from openai_local.engine import Finished, Usage

pytestmark = pytest.mark.anyio


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "once", "temperature": 0, "max_tokens": 5, **fields}


def answer(prompt: str, n: int = 5) -> str:
    return bytes(continuation(list(prompt.encode()), n)).decode()


async def test_an_answer_has_openais_shape() -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json=body())
    completion = Completion.model_validate(response.json(), strict=True, extra="forbid")
    assert completion.id.startswith("cmpl-")
    assert completion.object == "text_completion"
    assert completion.choices[0].text == answer("once")
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (4, 5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "prompt", [["one", "two", "three"], [list(b"one"), list(b"two"), list(b"three")]]
)
async def test_several_prompts_and_choices_have_the_right_indices(
    stream: bool, prompt: list[Any]
) -> None:
    async with serving() as client:
        response = await client.post("/completions", json=body(prompt=prompt, n=2, stream=stream))
    texts = [""] * 6
    reasons = [None] * 6
    documents = events_of(response) if stream else [response.json()]
    for document in documents:
        for choice in document["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [answer(text) for text in ("one", "one", "two", "two", "three", "three")]
    assert reasons == ["length"] * 6
    if not stream:
        assert response.json()["usage"]["prompt_tokens"] == 11
        assert response.json()["usage"]["completion_tokens"] == 30


async def test_token_ids_are_one_prompt() -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json=body(prompt=list(b"once")))
    assert [choice["text"] for choice in response.json()["choices"]] == [answer("once")]


async def test_the_default_is_sixteen_tokens_and_zero_are_none() -> None:
    async with serving() as client:
        default = await client.post("/v1/completions", json=body(max_tokens=None))
        none = await client.post("/v1/completions", json=body(max_tokens=0))
    assert default.json()["usage"]["completion_tokens"] == 16
    assert none.json()["choices"][0]["text"] == ""
    assert none.json()["usage"]["completion_tokens"] == 0


async def test_control_tokens_are_meant_in_a_raw_prompt_and_text_begins_as_the_model_wants() -> (
    None
):
    backend = FakeBackend(add_bos=True)
    async with serving(backend) as client:
        await client.post("/v1/completions", json=body(prompt="a<|control|>b"))
    assert backend.slots[0][:4] == [257, 97, 258, 98]


async def test_the_legacy_path_serves_any_name() -> None:
    async with serving() as client:
        legacy = {key: value for key, value in body().items() if key != "model"}
        for engine in ("davinci", "text-davinci-003", "org/name"):
            response = await client.post(f"/v1/engines/{engine}/completions", json=legacy)
            assert response.json()["choices"][0]["text"] == answer("once")
            assert response.json()["model"] == MODEL


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": 1}, "prompt", "invalid_type"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt.[0]", "invalid_type"),
        ({"prompt": [[]]}, "prompt.[0]", "invalid_value"),
        ({"prompt": [999]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [10**30]}, "prompt", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"echo": "yes"}, "echo", "invalid_type"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str
) -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


# Exactly


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["once", list(b"once"), ["once", "twice"], [list(b"once")]])
async def test_echo_sends_the_prompt_before_each_choice(prompt: Any, stream: bool) -> None:
    async with serving() as client:
        response = await client.post(
            "/completions", json=body(prompt=prompt, echo=True, n=2, stream=stream)
        )
    texts: dict[int, str] = {}
    for document in events_of(response) if stream else [response.json()]:
        for choice in document["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    expected = ["once", "twice"] if prompt == ["once", "twice"] else ["once"]
    assert [texts[i] for i in sorted(texts)] == [p + answer(p) for p in expected for _ in range(2)]


async def test_echo_writes_control_tokens_as_they_are_written() -> None:
    async with serving(FakeBackend(add_bos=True)) as client:
        fields = {"echo": True, "max_tokens": 0}
        ids = await client.post("/completions", json=body(prompt=[257, 97, 258], **fields))
        text = await client.post("/completions", json=body(prompt="a<|control|>", **fields))
    assert ids.json()["choices"][0]["text"] == "<|begin|>a<|control|>"
    assert text.json()["choices"][0]["text"] == "a<|control|>"
    assert text.json()["usage"] == {**ids.json()["usage"], "prompt_tokens": 3}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 5])
async def test_echo_with_logprobs_has_those_of_the_prompt_and_computes_it_in_full(
    max_tokens: int, stream: bool
) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": max_tokens}
    async with serving(FakeBackend(add_bos=True)) as client:
        await client.post("/completions", json=body(prompt="a<|control|>é"))
        sent = body(prompt="a<|control|>é", **fields, stream=stream)
        if stream:
            sent["stream_options"] = {"include_usage": True}
        response = await client.post("/completions", json=sent)
    documents = events_of(response) if stream else [response.json()]
    whole: dict[str, list[Any]] = {}
    for document in documents:
        for choice in document["choices"]:
            for key, values in (choice["logprobs"] or {}).items():
                whole.setdefault(key, []).extend(values)
    n = 5 + max_tokens
    assert [len(values) for values in whole.values()] == [n] * 4
    assert whole["tokens"][:5] == ["<|begin|>", "a", "<|control|>", "bytes:\\xc3", "bytes:\\xa9"]
    assert whole["text_offset"] == [0, 0, 1, 12, 12, *range(13, 13 + max_tokens)]
    assert whole["token_logprobs"][0] is None and whole["top_logprobs"][0] is None
    assert all(value < 0 for value in whole["token_logprobs"][1:])
    usage = documents[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, max_tokens)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_best_are_those_whose_tokens_are_likeliest_and_all_are_counted() -> None:
    # The seed decides how far a choice is from what the model would say: the first is greedy.
    backend = FakeBackend(next_token=lambda tokens: 97)
    fields = {"temperature": 1, "seed": 24, "best_of": 4, "prompt": ["x", "y"]}
    async with serving(backend) as client:
        one = await client.post("/completions", json=body(**fields))
        two = await client.post("/completions", json=body(**fields, n=2, logprobs=1))
        every = await client.post("/completions", json=body(**{**fields, "best_of": 2}, n=2))
    # Seeds 24 to 27: the third, 26, is as no seed.
    assert [c["text"] for c in one.json()["choices"]] == ["aaaaa", "aaaaa"]
    assert [c["text"][0] for c in two.json()["choices"]] == ["a", "y", "a", "y"]
    assert [c["index"] for c in two.json()["choices"]] == [0, 1, 2, 3]
    assert one.json()["choices"][0]["logprobs"] is None
    assert two.json()["choices"][0]["logprobs"]["tokens"] == ["a"] * 5
    assert [c["text"][0] for c in every.json()["choices"]] == ["y", "z", "y", "z"]
    for response in (one, two):
        assert response.json()["usage"]["completion_tokens"] == 40
        assert response.json()["usage"]["prompt_tokens"] == 2


def test_what_is_best_is_so_per_token() -> None:
    assert _mean_logprob(Finished("stop", Usage(1, 4, 0), -8.0)) == -2
    assert _mean_logprob(Finished("length", Usage(1, 0, 0), 0.0)) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "n": 2},
        {"best_of": 2, "stream": True},
        {"best_of": 21},
        {"best_of": -1},
        {"best_of": 20, "prompt": ["x"] * 103},
        {"best_of": 20, "max_waiting": 3},
    ],
)
async def test_a_best_of_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    sent = {key: value for key, value in fields.items() if key != "max_waiting"}
    async with serving(max_waiting=fields.get("max_waiting", 2048)) as client:
        response = await client.post("/completions", json=body(**sent))
        same = await client.post("/completions", json=body(best_of=2, n=2, stream=True))
        none = await client.post("/completions", json=body(best_of=0))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "best_of")
    assert same.status_code == none.status_code == 200


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("prompt", ["pre", ["pre"], list(b"pre")])
async def test_a_suffix_asks_for_the_middle(prompt: Any, add_bos: bool) -> None:
    backend = FakeBackend(fim=(1, 2, 3), add_bos=add_bos)
    async with serving(backend) as client:
        response = await client.post("/completions", json=body(prompt=prompt, suffix="suf"))
    assert response.status_code == 200
    start = [257] if add_bos else []
    expected = [*start, 1, *b"pre", 2, *b"suf", 3]
    assert backend.slots[0][: len(expected)] == expected
    assert response.json()["choices"][0]["text"] == bytes(continuation(expected, 5)).decode()
    assert response.json()["usage"]["prompt_tokens"] == len(expected)


async def test_a_suffix_is_plain_text_and_offsets_begin_after_the_prefix() -> None:
    backend = FakeBackend(fim=(1, 2, 3))
    async with serving(backend) as client:
        fields = {"prompt": "a<|control|>", "suffix": "<|control|>", "logprobs": 0}
        response = await client.post("/completions", json=body(**fields))
        nothing = await client.post("/completions", json=body(suffix=""))
    assert 258 not in backend.slots[0]
    assert response.json()["choices"][0]["logprobs"]["text_offset"][0] == len("a<|control|>")
    assert nothing.json()["choices"][0]["text"] == answer("once")


async def test_a_model_without_the_tokens_refuses_a_suffix() -> None:
    async with serving() as client:
        response = await client.post("/completions", json=body(suffix="x"))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "suffix")
    assert error["code"] == "unsupported_model"


async def test_an_echo_around_a_suffix_is_refused() -> None:
    async with serving(FakeBackend(fim=(1, 2, 3))) as client:
        response = await client.post("/completions", json=body(suffix="x", echo=True))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "echo")


@pytest.mark.parametrize("given", [{"prompt": None}, {}])
async def test_without_a_prompt_a_text_begins(given: dict[str, Any]) -> None:
    sent = {key: value for key, value in body().items() if key != "prompt"} | given
    backend = FakeBackend(add_bos=True)
    async with serving(backend) as client, serving() as other:
        response = await client.post("/completions", json=sent)
        without = await other.post("/completions", json=sent)
    assert response.status_code == 200
    assert backend.slots[0][0] == 257
    assert response.json()["usage"]["prompt_tokens"] == 1
    assert (without.status_code, without.json()["error"]["param"]) == (400, "prompt")


async def test_ids_outside_the_vocabulary_are_refused_before_they_are_written() -> None:
    async with serving() as client:
        for fields in ({"echo": True}, {"logprobs": 0}):
            response = await client.post("/completions", json=body(prompt=[999], **fields))
            assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
