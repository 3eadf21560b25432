"""POST /chat/completions over the fake backend."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from clients import MESSAGES, MODEL, OpenRequest, events_of, serving
from fakes import FakeBackend, continuation, fake_app, spelling
from openai.types.chat import ChatCompletion, ChatCompletionChunk

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 6, **fields}


def answer(prompt: str, n: int) -> str:
    return bytes(continuation(list(prompt.encode()), n)).decode()


async def test_an_answer_has_openais_shape() -> None:
    async with serving() as client:
        response = await client.post(PATH, json=body())
    assert response.status_code == 200
    completion = ChatCompletion.model_validate(response.json(), strict=True, extra="forbid")
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == MODEL
    (choice,) = completion.choices
    assert choice.message.content == answer("<user>hello<assistant>", 6)
    assert (choice.index, choice.finish_reason) == (0, "length")
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len("<user>hello<assistant>")
    assert completion.usage.completion_tokens == 6
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 6


async def test_a_stream_is_the_answer_in_pieces() -> None:
    async with serving() as client:
        response = await client.post(PATH, json=body(stream=True))
    chunks = [
        ChatCompletionChunk.model_validate(event, strict=True, extra="forbid")
        for event in events_of(response)
    ]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    first, *rest, last = (chunk.choices[0] for chunk in chunks)
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    text = "".join(choice.delta.content or "" for choice in rest)
    assert text == answer("<user>hello<assistant>", 6)
    assert all(choice.finish_reason is None for choice in (first, *rest))
    assert last.finish_reason == "length"
    assert last.delta.content is None
    assert all("usage" not in event for event in events_of(response))


async def test_usage_comes_in_a_chunk_without_choices_if_asked() -> None:
    async with serving() as client:
        response = await client.post(
            PATH, json=body(stream=True, stream_options={"include_usage": True})
        )
    *chunks, last = events_of(response)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 22,
        "completion_tokens": 6,
        "total_tokens": 28,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_differ_by_seed_and_share_the_prompt(stream: bool) -> None:
    async with serving() as client:
        response = await client.post(PATH, json=body(n=3, seed=5, temperature=1, stream=stream))
    texts = ["", "", ""]
    if stream:
        for chunk in events_of(response):
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
    else:
        choices = response.json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        texts = [choice["message"]["content"] for choice in choices]
        assert response.json()["usage"]["prompt_tokens"] == 22
        assert response.json()["usage"]["completion_tokens"] == 18
    assert len(set(texts)) == 3
    assert all(len(text) == 6 for text in texts)


async def test_a_repeated_prompt_reports_its_cached_tokens() -> None:
    async with serving() as client:
        for cached in (0, 21):
            response = await client.post(PATH, json=body())
            details = response.json()["usage"]["prompt_tokens_details"]
            assert details["cached_tokens"] == cached


async def test_an_end_and_a_stop_string_give_stop() -> None:
    backend = FakeBackend(next_token=spelling("one. two. three."))
    async with serving(backend) as client:
        whole = await client.post(PATH, json=body(max_tokens=None))
        cut = await client.post(PATH, json=body(max_tokens=50, stop=["zzz", ". th"]))
        one = await client.post(PATH, json=body(max_completion_tokens=4, max_tokens=None))
    choices = [response.json()["choices"][0] for response in (whole, cut, one)]
    assert [c["message"]["content"] for c in choices] == ["one. two. three.", "one. two", "one."]
    assert [c["finish_reason"] for c in choices] == ["stop", "stop", "length"]


async def test_every_role_and_text_parts_reach_the_template() -> None:
    messages = [
        {"role": "developer", "content": "rules"},
        {"role": "system", "content": [{"type": "text", "text": t} for t in "ab"]},
        {"role": "user", "content": "question", "name": "ann"},
        {"role": "assistant", "content": "reply"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": "yes", "refusal": "but"},
    ]  # fmt: skip
    backend = FakeBackend()
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(messages=messages))
    assert response.status_code == 200
    prompt = (
        "<system>rules<system>a\nb<user>question<assistant>reply<assistant>no<assistant>yes\nbut"
    )
    assert bytes(backend.slots[0]).decode().startswith(f"{prompt}<assistant>")


async def test_control_tokens_in_what_users_write_stay_text() -> None:
    template = "<|control|>{{ messages[0].content }}<assistant>"
    backend = FakeBackend(chat_template=template)
    messages = [{"role": "user", "content": "<|control|>"}]
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(messages=messages))
    assert response.status_code == 200
    assert backend.slots[0][:12] == [258, *b"<|control|>"]


async def test_the_models_own_sampling_holds_where_the_body_is_silent() -> None:
    def greedy_or_not(defaults: dict[str, float]) -> FakeBackend:
        return FakeBackend(sampling_defaults=defaults)

    async with serving(greedy_or_not({"temp": 0.0})) as own, serving() as neutral:
        greedy = await own.post(PATH, json=body(temperature=None, seed=3))
        drawn = await neutral.post(PATH, json=body(temperature=None, seed=3))
    expected = answer("<user>hello<assistant>", 6)
    assert greedy.json()["choices"][0]["message"]["content"] == expected
    assert drawn.json()["choices"][0]["message"]["content"] != expected


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.[0].content.[0].text",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": ""}]}]},
            "messages.[0].content.[0].type",
            "invalid_value",
        ),
        ({"model": 1}, "model", "invalid_type"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 2.5}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        (
            {"max_tokens": 1, "max_completion_tokens": 1},
            "max_tokens",
            "invalid_parameter_combination",
        ),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop.[0]", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            {"stream": True, "stream_options": {"foo": 1}},
            "stream_options.foo",
            "unknown_parameter",
        ),
        ({"tools": [{}]}, "tools.[0]", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"store": 0}, "store", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"top_k": -1}, "top_k", "invalid_value"),
        ({"repeat_penalty": 0}, "repeat_penalty", "invalid_value"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str
) -> None:
    async with serving() as client:
        response = await client.post(PATH, json=body(**fields))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("kind", "said"),
    [("image_url", "Images are not supported"), ("input_audio", "Audio is"), ("file", "Files are")],
)
async def test_what_is_no_text_is_refused_in_words_for_a_chats_user(kind: str, said: str) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: {}}]
    async with serving() as client:
        response = await client.post(
            PATH, json=body(messages=[{"role": "user", "content": parts}], stream=True)
        )
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert "only text" in response.json()["error"]["message"]


async def test_parameters_that_ask_for_nothing_are_taken() -> None:
    neutral = {
        "n": None, "logprobs": False, "tools": [], "tool_choice": "auto",
        "response_format": {"type": "text"}, "store": False, "service_tier": "auto",
        "user": "ann", "logit_bias": {}, "stop": [], "audio": None, "modalities": ["text"],
    }  # fmt: skip
    async with serving() as client:
        response = await client.post(PATH, json=body(**neutral))
    assert response.status_code == 200


async def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers() -> None:
    messages = [{"role": "user", "content": "x" * 300}]
    async with serving(FakeBackend(n_ctx=256)) as client:
        response = await client.post(PATH, json=body(messages=messages, stream=True))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "messages"
    assert "255" in error["message"]
    assert "317" in error["message"]


async def test_a_model_that_cannot_chat_says_why() -> None:
    async with serving(FakeBackend(chat_template=None)) as client:
        response = await client.post(PATH, json=body())
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_model"
    assert "chat_template" in response.json()["error"]["message"]


async def test_a_template_that_refuses_the_messages_is_a_400() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    async with serving(FakeBackend(chat_template=template)) as client:
        response = await client.post(PATH, json=body())
    assert response.status_code == 400
    assert "roles must alternate" in response.json()["error"]["message"]


async def test_a_failing_step_is_a_500_and_the_next_request_works() -> None:
    failing = [True]
    backend = FakeBackend(faults=lambda batch: -3 if failing else 0)
    async with serving(backend) as client:
        failed = await client.post(PATH, json=body())
        failing.clear()
        works = await client.post(PATH, json=body())
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert works.status_code == 200


async def test_after_the_first_byte_an_error_is_one_event_and_no_done() -> None:
    backend = FakeBackend(faults=lambda batch: -3 if batch.positions[0] > 24 else 0)
    async with serving(backend) as client:
        response = await client.post(PATH, json=body(stream=True))
    assert response.status_code == 200
    *_, before, last = response.text.strip().split("\n\n")
    assert '"delta"' in before
    assert last.startswith('data: {"error":{"message":"the engine')
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_places(stream: bool) -> None:
    app = fake_app(FakeBackend(n_ctx=10**6, step_s=0.002))
    engine = (await app.registry.get(MODEL)).engine
    request = OpenRequest(app, PATH, body(n=3, max_tokens=None, stream=stream))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(request.run)
            while engine.metrics().sequences_running < 3:
                await anyio.sleep(0.005)
            request.leave.set()
            await request.ended.wait()
        while engine.metrics().sequences_running:
            await anyio.sleep(0.005)
    assert engine.metrics().requests_cancelled_total == 3
    await app.aclose()


async def test_a_cancelled_request_frees_its_place() -> None:
    app = fake_app(FakeBackend(n_ctx=10**6, step_s=0.002))
    engine = (await app.registry.get(MODEL)).engine
    request = OpenRequest(app, PATH, body(max_tokens=None, stream=True))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(request.run)
            await request.until(b'"content":"')
            group.cancel_scope.cancel()
        while engine.metrics().sequences_running:
            await anyio.sleep(0.005)
    await app.aclose()


async def test_a_quiet_stream_is_kept_alive_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_local.routes.sse.KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr("openai_local.routes.sse.STOP_POLL_S", 0.01)
    app = fake_app(FakeBackend(n_ctx=10**6, step_s=0.3))
    request = OpenRequest(app, PATH, body(max_tokens=2, stream=True))
    with anyio.fail_after(10):
        await request.run()
    assert request.status == 200
    assert request.body.startswith(b": keep-alive\n\n")
    assert request.body.endswith(b"data: [DONE]\n\n")
    await app.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_beyond_the_queue_a_request_is_told_to_come_back(stream: bool) -> None:
    app = fake_app(FakeBackend(n_ctx=10**6, n_slots=2, step_s=0.002), max_waiting=1)
    engine = (await app.registry.get(MODEL)).engine
    first = OpenRequest(app, PATH, body(n=2, max_tokens=None, stream=True))
    refused = OpenRequest(app, PATH, body(n=2, stream=stream))
    taken = OpenRequest(app, PATH, body(stream=stream))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(first.run)
            await first.until(b'"content":"')
            await refused.run()
            while not engine.metrics().requests_cancelled_total:  # the half that was taken
                await anyio.sleep(0.005)
            group.start_soon(taken.run)
            while not engine.metrics().sequences_waiting:
                await anyio.sleep(0.005)
            first.leave.set()
            await taken.ended.wait()
    assert refused.status == 429
    assert (b"retry-after", b"1") in refused.messages[0]["headers"]
    assert b'"code":"rate_limit_exceeded"' in refused.body
    assert taken.status == 200
    await app.aclose()


async def test_more_choices_than_can_ever_wait_are_refused_for_good() -> None:
    async with serving(FakeBackend(n_slots=2), max_waiting=1) as client:
        fits = await client.post(PATH, json=body(n=3))
        refused = await client.post(PATH, json=body(n=4))
    assert fits.status_code == 200
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


async def test_a_request_that_takes_too_long_fails_and_is_not_to_be_tried_again() -> None:
    backend = FakeBackend(n_ctx=10**6, step_s=0.01)
    async with serving(backend, request_timeout_s=0.1) as client:
        whole = await client.post(PATH, json=body(max_tokens=None))
        streamed = await client.post(PATH, json=body(max_tokens=None, stream=True))
    assert whole.status_code == 504
    assert whole.headers["x-should-retry"] == "false"
    assert whole.json()["error"]["code"] == "deadline_exceeded"
    assert '"content":"' in streamed.text
    assert '"code":"deadline_exceeded"' in streamed.text.strip().split("\n\n")[-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_tier_that_was_asked_for_is_named_in_the_answer(stream: bool) -> None:
    tiers = {"auto": "default", "flex": "flex", "fast": "priority", "priority": "priority"}
    async with serving() as client:
        for asked, given in tiers.items():
            response = await client.post(PATH, json=body(stream=stream, service_tier=asked))
            answers = events_of(response) if stream else [response.json()]
            assert {answer["service_tier"] for answer in answers} == {given}
        refused = await client.post(PATH, json=body(service_tier="gold"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "service_tier")


async def test_a_higher_tier_does_not_wait_behind_a_lower_one() -> None:
    app = fake_app(FakeBackend(n_ctx=10**6, n_slots=1, step_s=0.002))
    engine = (await app.registry.get(MODEL)).engine
    first = OpenRequest(app, PATH, body(max_tokens=None, stream=True))
    ended: list[str] = []

    async def ask(tier: str) -> None:
        await OpenRequest(app, PATH, body(service_tier=tier)).run()
        ended.append(tier)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(first.run)
            await first.until(b'"content":"')
            for n, tier in enumerate(("flex", "default", "priority"), 1):
                group.start_soon(ask, tier)
                while engine.metrics().sequences_waiting < n:
                    await anyio.sleep(0.005)
            first.leave.set()
    assert ended == ["priority", "default", "flex"]
    await app.aclose()


async def test_a_cache_key_keeps_prompts_apart() -> None:
    long = body(messages=[{"role": "user", "content": "hello " * 9}])
    async with serving() as client:
        cached = [
            (await client.post(PATH, json={**long, "prompt_cache_key": key})).json()["usage"][
                "prompt_tokens_details"
            ]["cached_tokens"]
            for key in ("a", "b", "a", "b", None)
        ]
    n_prompt = len("<user><assistant>") + len("hello " * 9)
    assert cached == [0, 0, n_prompt - 1, n_prompt - 1, 0]
