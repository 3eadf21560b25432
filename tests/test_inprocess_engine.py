"""Python without HTTP: the engine of chats and completions, on both event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from clients import MESSAGES, MODEL, client_of, n_cancelled, until_async
from fakes import FakeBackend, fake_app, spelling
from pydantic import BaseModel

import openai_local
from openai_local import Engine, RequestError
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.api.types.completions import CompletionRequest
from openai_local.engine import EngineStopped
from openai_local.inprocess import parameters

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def engine_of(backend: FakeBackend | None = None, **options: Any) -> AsyncIterator[Engine]:
    app = fake_app(backend, **options)
    try:
        yield Engine.of(app)
    finally:
        await app.aclose()


@pytest.mark.parametrize(
    ("keywords", "body", "own"),
    [
        (parameters.ChatStreamParameters, ChatCompletionRequest, {"messages", "stream"}),
        (parameters.CompletionStreamParameters, CompletionRequest, {"prompt", "stream"}),
    ],
)
def test_the_keywords_are_the_parameters_of_the_routes(
    keywords: Any, body: type[BaseModel], own: set[str]
) -> None:
    assert set(keywords.__annotations__) == set(body.model_fields) - own


async def test_a_chat_is_what_the_route_answers() -> None:
    app = fake_app(FakeBackend(next_token=spelling("hello")))
    async with client_of(app) as client:
        routed = await client.post(
            "/chat/completions", json={"model": MODEL, "messages": MESSAGES, "temperature": 0}
        )
    answer = await Engine.of(app).chat(MESSAGES, temperature=0)
    assert answer.text == answer.message.content == "hello"
    different = {"id", "created", "usage"}
    sent = answer.model_dump(exclude=different, exclude_unset=True)
    assert sent == {key: v for key, v in routed.json().items() if key not in different}
    assert answer.usage.prompt_tokens == routed.json()["usage"]["prompt_tokens"]
    await app.aclose()


async def test_one_text_is_what_the_user_says_and_answers_are_history() -> None:
    async with engine_of() as engine:
        answer = await engine.chat("hello", temperature=0, max_tokens=3)
        same = await engine.chat(
            [{"role": "user", "content": "hello"}], temperature=0, max_tokens=3
        )
        assert answer.text == same.text
        history = [*MESSAGES, answer.message, {"role": "user", "content": "go on"}]
        prompt = await engine.apply_template(history)
        assert prompt == f"<user>hello<assistant>{answer.text}<user>go on<assistant>"


async def test_a_stream_has_the_chunks_of_the_route() -> None:
    async with engine_of(FakeBackend(next_token=spelling("hello"))) as engine:
        options = {"include_usage": True}
        async with engine.stream_chat("hi", temperature=0, stream_options=options) as stream:
            chunks = [chunk async for chunk in stream]
        assert "".join(chunk.text for chunk in chunks) == "hello"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks[-2:-1]] == ["stop"]
        assert chunks[-1].choices == [] and chunks[-1].usage is not None
        assert [chunk async for chunk in stream] == []
        async with engine.stream_chat("hi", temperature=0) as stream:
            assert all([chunk.usage is None async for chunk in stream])


async def test_completions_of_several_prompts_whole_and_streamed() -> None:
    async with engine_of() as engine:
        answer = await engine.complete(["ab", "cd"], max_tokens=4, temperature=0)
        assert [len(choice.text) for choice in answer.choices] == [4, 4]
        texts = ["", ""]
        async for chunk in engine.stream_complete(("ab", "cd"), max_tokens=4, temperature=0):
            texts[chunk.choices[0].index] += chunk.text
        assert texts == [choice.text for choice in answer.choices]
        assert (await engine.complete([97, 98], max_tokens=4, temperature=0)).text == texts[0]


async def test_vectors_tokens_and_texts() -> None:
    async with engine_of() as engine:
        vectors = await engine.embed(["ab", "cd"])
        assert vectors.shape == (2, 8)
        assert (await engine.embed("ab", dimensions=4)).shape == (1, 4)
        assert await engine.tokenize("hey") == [104, 101, 121]
        assert await engine.detokenize((104, 101, 121)) == "hey"


async def test_a_reranker_ranks() -> None:
    async with engine_of(FakeBackend(can_generate=False, can_rank=True)) as engine:
        ranking = await engine.rerank("a", ["bb", "aa"], return_documents=True)
        assert len(ranking.results) == 2
        assert ranking.results[0].relevance_score >= ranking.results[1].relevance_score
        assert ranking.results[0].document is not None


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"store": True}, "store"),
        ({"stream": True}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {999: 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools.[0].function"),
    ],
)
async def test_what_is_wrong_is_named(given: Any, param: str) -> None:
    async with engine_of() as engine:
        with pytest.raises(RequestError) as refused:
            await engine.chat("hi", **given)
        assert refused.value.param == param


async def test_what_does_not_fit_is_named_by_where_it_stands() -> None:
    async with engine_of(FakeBackend(n_ctx=32)) as engine:
        for call, param in (
            (engine.chat("h" * 50), "messages"),
            (engine.complete("h" * 50), "prompt"),
            (engine.embed("h" * 100), "input"),
            (engine.embed("h", dimensions=9), "dimensions"),
        ):
            with pytest.raises(RequestError) as refused:
                await call
            assert refused.value.param == param
        with pytest.raises(openai_local.UnknownModel, match="other"):
            await engine.chat("hi", model="other")
        async with engine.stream_chat("h" * 50) as stream:
            with pytest.raises(RequestError):
                await anext(stream)


async def test_values_of_python_are_taken_as_json_would_have_them() -> None:
    async with engine_of() as engine:
        answer = await engine.chat(
            tuple(MESSAGES), stop=("q", "z"), logit_bias={ord("x"): 5}, max_tokens=2, top_k=None
        )
        assert answer.usage.completion_tokens <= 2


async def test_a_pydantic_model_is_a_response_format() -> None:
    class Weather(BaseModel):
        city: str

    def brackets(tokens: Any) -> int:
        made = bytes(t for t in tokens if t < 256).rpartition(b"<assistant>")[2]
        return b'{"city": "Rome"}'[len(made) : len(made) + 1][0]

    async with engine_of(FakeBackend(next_token=brackets)) as engine:
        answer = await engine.chat("hi", response_format=Weather, temperature=0)
        assert Weather.model_validate_json(answer.text).city == "Rome"


async def test_a_cancelled_call_frees_its_place() -> None:
    async with engine_of(FakeBackend(n_ctx=4096, step_s=0.01)) as engine:
        with anyio.move_on_after(0.1) as scope:
            await engine.chat("hi")
        assert scope.cancelled_caught
        await until_async(lambda: n_cancelled(engine._local) == 1)


async def test_a_stream_that_is_closed_early_frees_its_place() -> None:
    async with engine_of(FakeBackend(n_ctx=4096, step_s=0.01)) as engine:
        async with engine.stream_chat("hi") as stream:
            async for _ in stream:
                break
        await until_async(lambda: n_cancelled(engine._local) == 1)
        assert [chunk async for chunk in stream] == []
        with anyio.move_on_after(0.1):
            async for _ in engine.stream_chat("hi"):
                pass
        await until_async(lambda: n_cancelled(engine._local) == 2)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio warns about what is dropped
async def test_a_stream_that_is_dropped_frees_its_place(anyio_backend: str) -> None:
    async with engine_of(FakeBackend(n_ctx=4096, step_s=0.01)) as engine:
        async for _ in engine.stream_chat("hi"):
            break
        await until_async(lambda: n_cancelled(engine._local) == 1)


def test_a_stream_of_a_loop_that_is_gone_does_not_seem_to_have_ended() -> None:
    app = fake_app(FakeBackend(n_ctx=4096))
    streams = []

    async def begin() -> None:
        streams.append(app.engine.stream_chat("hi"))
        await anext(streams[0])

    async def go_on() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await anext(streams[0])
        await until_async(lambda: n_cancelled(app) == 1)
        await app.aclose()

    anyio.run(begin)
    anyio.run(go_on)


async def test_a_stream_that_nobody_reads_costs_nothing() -> None:
    async with engine_of() as engine:
        engine.stream_chat("hi")
        async with engine.stream_chat("hi"):
            pass
        assert engine._models.loaded(MODEL) is None


async def test_the_application_and_its_engine_share_a_batch() -> None:
    backend = FakeBackend(n_ctx=4096, step_s=0.005)
    app = fake_app(backend)
    engine = Engine.of(app)
    await engine.chat("hi", max_tokens=1)
    async with client_of(app) as client, anyio.create_task_group() as group:
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 30}
        group.start_soon(lambda: client.post("/chat/completions", json=body))
        await engine.chat("hello", max_tokens=30)
    assert any(len(set(batch.slots)) == 2 for batch in backend.batches)
    await app.aclose()


async def test_closing_the_engine_of_an_application_closes_nothing() -> None:
    app = fake_app()
    async with Engine.of(app) as engine:
        await engine.chat("hi", max_tokens=1)
    assert app.registry.loaded(MODEL) is not None
    await app.aclose()


async def test_an_engine_of_its_own_loads_at_its_beginning_and_is_freed_at_its_end() -> None:
    backend = FakeBackend()
    engine = Engine("fake.gguf")
    engine._local = fake_app(backend)
    async with engine:
        assert engine._models.loaded(MODEL) is not None
    assert backend.closed
    with pytest.raises(EngineStopped):
        await engine.chat("hi")
    async with engine.stream_chat("hi") as stream:
        with pytest.raises(EngineStopped):
            await anext(stream)
