"""What other servers of this API get wrong, and we must not. Over the fake backend."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from clients import MESSAGES, MODEL, OpenRequest, client_of, events_of, serving
from fakes import FakeBackend, continuation, fake_app, spelling

from openai_local.engine import SamplingParams

pytestmark = pytest.mark.anyio

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 6, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "once", "temperature": 0, "max_tokens": 6, **fields}


def letters(n: int, prompt: str = "once") -> str:
    return bytes(continuation(list(prompt.encode()), n)).decode()


# Usage and ends: 0/0/0, always "stop", an error as text, empty answers tried again.


async def test_text_completions_report_what_they_used_and_why_they_ended() -> None:
    async with serving(FakeBackend(next_token=spelling("ab", 4))) as client:
        stopped = (await client.post(TEXT, json=text())).json()
        cut = (await client.post(TEXT, json=text(max_tokens=1))).json()
    assert stopped["usage"]["prompt_tokens"] == 4
    assert stopped["usage"]["completion_tokens"] == 3
    assert stopped["usage"]["total_tokens"] == 7
    assert [r["choices"][0]["finish_reason"] for r in (stopped, cut)] == ["stop", "length"]


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat(stream=True)), (TEXT, text(stream=True))])
async def test_an_error_in_a_stream_is_an_error_and_no_text_that_stopped(
    path: str, body: dict[str, Any]
) -> None:
    n_prompt = 22 if path == CHAT else 4
    backend = FakeBackend(faults=lambda b: -3 if b.positions[0] > n_prompt + 2 else 0)
    async with serving(backend) as client:
        response = await client.post(path, json=body)
    assert '"finish_reason":"stop"' not in response.text
    assert "[DONE]" not in response.text
    assert response.text.strip().split("\n\n")[-1].startswith('data: {"error":{"message":')


async def test_embeddings_report_their_usage() -> None:
    async with serving() as client:
        response = await client.post(EMBED, json={"model": MODEL, "input": ["abc", "de"]})
    assert response.json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


async def test_an_empty_answer_is_an_answer() -> None:
    app = fake_app(FakeBackend(next_token=spelling("")))
    async with client_of(app) as client:
        response = await client.post(CHAT, json=chat())
    assert response.json()["choices"][0]["message"]["content"] == ""
    assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert (await app.registry.get(MODEL)).engine.metrics().requests_submitted_total == 1
    await app.aclose()


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_usage_has_the_details_of_the_specification(path: str, body: dict[str, Any]) -> None:
    async with serving() as client:
        usage = (await client.post(path, json=body)).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_usage_of_a_streamed_text_completion_has_no_choices() -> None:
    options = {"include_usage": True}
    async with serving() as client:
        response = await client.post(TEXT, json=text(stream=True, stream_options=options))
    *chunks, last = events_of(response)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {chunk["model"] for chunk in (*chunks, last)} == {MODEL}


# Errors: 500 for what the client sent, {"detail": ...}, a default in place of a wrong type.

BAD: list[tuple[str, Any]] = [
    (CHAT, {}),
    (CHAT, {"model": MODEL}),
    (CHAT, []),
    (CHAT, chat(messages="hello")),
    (CHAT, chat(messages=[{"role": "user"}])),
    (CHAT, chat(messages=[{"role": "assistant", "tool_calls": [{"id": 1}]}])),
    (CHAT, chat(messages=[{"role": "assistant", "tool_calls": "f"}])),
    (CHAT, chat(messages=[{"role": "tool", "content": "x"}])),
    (TEXT, text(prompt=[])),
    (TEXT, text(prompt=["a", 1])),
    (TEXT, text(prompt={"a": 1})),
    (EMBED, {"model": MODEL}),
    (EMBED, {"model": MODEL, "input": {}}),
]


@pytest.mark.parametrize(("path", "body"), BAD)
async def test_what_a_client_gets_wrong_is_a_400_in_openais_shape(path: str, body: Any) -> None:
    async with serving() as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b'{"model": NaN}', b"\xff", b"null"])
@pytest.mark.parametrize("path", [CHAT, TEXT, EMBED])
async def test_malformed_json_is_a_400(path: str, content: bytes) -> None:
    async with serving() as client:
        response = await client.post(path, content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


WRONG_TYPES: dict[str, Any] = {
    "model": 1, "temperature": "0.5", "top_p": [], "max_tokens": "6", "n": "1", "stop": 1,
    "seed": "1", "stream": 1, "stream_options": True, "presence_penalty": "0",
    "frequency_penalty": {}, "logit_bias": 5, "user": 7, "top_k": 1.5, "min_p": "x",
    "repeat_penalty": None.__class__.__name__, "ignore_eos": "true",
}  # fmt: skip


@pytest.mark.parametrize("param", WRONG_TYPES)
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_a_wrong_type_is_named_and_no_default_takes_its_place(
    path: str, body: dict[str, Any], param: str
) -> None:
    async with serving() as client:
        response = await client.post(path, json={**body, param: WRONG_TYPES[param]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_what_nobody_knows_is_refused_and_not_dropped(
    path: str, body: dict[str, Any]
) -> None:
    async with serving() as client:
        response = await client.post(path, json={**body, "frobnicate": 1})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "frobnicate")
    assert error["code"] == "unknown_parameter"


@pytest.mark.parametrize(
    "path", [CHAT, TEXT, EMBED, "/v1/models/x", "/completions", "/engines/x/completions"]
)
async def test_a_method_that_is_not_served_is_a_405_that_names_the_one_that_is(path: str) -> None:
    async with serving() as client:
        response = await client.delete(path)
    assert response.status_code == 405
    assert response.headers["allow"] in ("GET", "POST")
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_an_unknown_model_is_not_another() -> None:
    async with serving() as client:
        asked = [
            await client.post(CHAT, json=chat(model="gpt-4o")),
            await client.post(TEXT, json=text(model="gpt-4o")),
            await client.post(EMBED, json={"model": "gpt-4o", "input": "a"}),
            await client.get("/v1/models/gpt-4o"),
        ]
    for response in asked:
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert response.json()["error"]["param"] == "model"


# Parameters that are dropped, bounded or have other defaults elsewhere.


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())])
async def test_the_defaults_are_openais(path: str, body: dict[str, Any]) -> None:
    backend = FakeBackend()
    async with serving(backend) as client:
        await client.post(path, json={**body, "temperature": None})
    assert backend.sampled == [SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)]


async def test_both_names_of_the_length_are_honoured_and_text_has_sixteen_by_default() -> None:
    async with serving() as client:
        old = await client.post(CHAT, json=chat(max_tokens=3))
        new = await client.post(CHAT, json=chat(max_tokens=None, max_completion_tokens=3))
        default = await client.post(TEXT, json=text(max_tokens=None))
    used = [r.json()["usage"]["completion_tokens"] for r in (old, new, default)]
    assert used == [3, 3, 16]


async def test_more_choices_than_slots_are_made() -> None:
    async with serving(FakeBackend(n_slots=2)) as client:
        response = await client.post(CHAT, json=chat(n=7))
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(7))
    assert response.json()["usage"]["completion_tokens"] == 42


async def test_five_stop_strings_are_one_too_many() -> None:
    async with serving() as client:
        four = await client.post(CHAT, json=chat(stop=list("wxyz")))
        five = await client.post(CHAT, json=chat(stop=list("vwxyz")))
    assert (four.status_code, five.status_code) == (200, 400)


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_served_streamed_too_and_token_ids_are_prompts(
    stream: bool,
) -> None:
    for prompt in (["once", "twice"], [list(b"once"), list(b"twice")]):
        async with serving() as client:
            response = await client.post(TEXT, json=text(prompt=prompt, stream=stream))
        texts = ["", ""]
        for document in events_of(response) if stream else [response.json()]:
            for choice in document["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == [letters(6), letters(6, "twice")]


async def test_echo_best_of_suffix_and_logprobs_are_never_silently_ignored() -> None:
    async with serving() as client:
        echoed = await client.post(TEXT, json=text(echo=True))
        best = await client.post(TEXT, json=text(best_of=3))
        suffix = await client.post(TEXT, json=text(suffix="end"))
        logprobs = await client.post(TEXT, json=text(logprobs=0))
    assert echoed.json()["choices"][0]["text"] == "once" + letters(6)
    assert best.json()["usage"]["completion_tokens"] == 18
    assert suffix.json()["error"]["param"] == "suffix"
    shape = {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert logprobs.json()["choices"][0]["logprobs"].keys() == shape


async def test_penalties_count_all_that_was_generated() -> None:
    """And not the last 64 tokens: with 100 letters of one kind, the penalty is of them all."""
    backend = FakeBackend(n_ctx=512, next_token=lambda tokens: 97)
    fields = {"frequency_penalty": 0.1, "max_tokens": 105, "logit_bias": {"98": 0.0}}
    async with serving(backend) as client:
        response = await client.post(TEXT, json=text(**fields))
    # After 100 times 0.1 what the model says is no likelier than anything else.
    answer = response.json()["choices"][0]["text"]
    assert answer[:100] == "a" * 100 and answer[101:] != "a" * 4


async def test_dimensions_are_honoured_with_vectors_of_length_one() -> None:
    async with serving() as client:
        response = await client.post(EMBED, json={"model": MODEL, "input": "aab", "dimensions": 3})
        ids = await client.post(EMBED, json={"model": MODEL, "input": [97, 97, 98]})
    (vector,) = [item["embedding"] for item in response.json()["data"]]
    assert len(vector) == 3
    assert sum(value * value for value in vector) == pytest.approx(1)
    assert ids.json()["usage"]["total_tokens"] == 3


async def test_an_input_longer_than_a_batch_is_embedded() -> None:
    async with serving(FakeBackend(n_batch=16)) as client:
        response = await client.post(EMBED, json={"model": MODEL, "input": "a" * 60})
    assert response.status_code == 200


async def test_paths_without_v1_speak_openais_shapes_too() -> None:
    async with serving() as client:
        completion = await client.post("/completions", json=text())
        legacy = await client.post("/engines/davinci/completions", json=text())
        embedding = await client.post("/embeddings", json={"model": MODEL, "input": "a"})
    assert completion.json()["object"] == legacy.json()["object"] == "text_completion"
    assert embedding.json()["object"] == "list"


async def test_a_newer_request_does_not_cut_a_stream_off() -> None:
    app = fake_app(FakeBackend(n_slots=1))
    first = OpenRequest(app, CHAT, chat(max_tokens=40, stream=True))
    second = OpenRequest(app, CHAT, chat(stream=True))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(first.run)
            group.start_soon(second.run)
    for request, n in ((first, 40), (second, 6)):
        assert request.body.count(b'"content":"') == n + 1  # the first has the role
        assert request.body.endswith(b"data: [DONE]\n\n")
    await app.aclose()
