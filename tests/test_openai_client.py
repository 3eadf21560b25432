"""OpenAI's own client against the real model, mounted in a host on a real socket."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from servers import MODEL, SMALL, serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import openai_local
from openai_local.application import Application
from openai_local.engine import EngineMetrics

pytestmark = pytest.mark.model

FRANCE: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story."}]
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The client's event loop; the server has its own."""
    return "asyncio"


@pytest.fixture(scope="module")
def local() -> Application:
    return openai_local.app(**SMALL)


@pytest.fixture(scope="module")
def host(local: Application) -> Iterator[str]:
    """A host with the model at /v1, one behind a key at /locked, and a route of its own."""

    async def own(request: Request) -> PlainTextResponse:
        return PlainTextResponse("the host's")

    locked = openai_local.app(**SMALL, api_key="secret")
    routes = [Route("/own", own), Mount("/v1", local), Mount("/locked", locked)]
    with serve(Starlette(routes=routes, lifespan=local.lifespan)) as url:
        yield url


@pytest.fixture(scope="module")
def client(host: str) -> Iterator[OpenAI]:
    with client_of(f"{host}/v1") as client:
        yield client


@pytest.fixture
async def async_client(host: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{host}/v1",
        api_key="none",
        max_retries=0,
        timeout=TIMEOUT_S,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client


def client_of(url: str, api_key: str = "none") -> OpenAI:
    return OpenAI(
        base_url=url,
        api_key=api_key,
        max_retries=0,
        timeout=TIMEOUT_S,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def content(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def check_chunks(chunks: list[ChatCompletionChunk]) -> None:
    """One answer about France, with its usage at the end."""
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].id.startswith("chatcmpl-")
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(choice.delta.role is None for chunk in chunks[1:] for choice in chunk.choices)
    assert len(chunks) > 4
    assert "Paris" in content(chunks)
    *others, last = chunks
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in others)
    assert [chunk.choices[0].finish_reason for chunk in others][-2:] == [None, "stop"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert last.usage.completion_tokens > 0


def test_the_capital_of_france_is_paris(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].message.role == "assistant"
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage is not None
    assert 20 < usage.prompt_tokens < 60
    assert 0 < usage.completion_tokens < 40
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    again = client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=1)
    assert again.id != answer.id
    assert again.choices[0].finish_reason == "length"
    assert again.usage is not None
    assert (again.usage.prompt_tokens, again.usage.completion_tokens) == (usage.prompt_tokens, 1)
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_the_answer_streams(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        check_chunks(list(stream))


def test_a_stream_has_no_usage_unless_asked(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=FRANCE, max_tokens=3, stream=True
    ) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.anyio
async def test_the_async_client_gets_the_same_whole_and_streamed(
    async_client: AsyncOpenAI,
) -> None:
    answer = await async_client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    stream = await async_client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async with stream:
        chunks = [chunk async for chunk in stream]
    check_chunks(chunks)
    assert content(chunks) == answer.choices[0].message.content
    assert chunks[0].id != answer.id


def test_text_completions_continue_a_prompt(client: OpenAI) -> None:
    prompt = "The capital of France is"
    answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8)
    with client.completions.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=8, stream=True
    ) as stream:
        streamed = "".join(chunk.choices[0].text for chunk in stream)
    assert answer.id.startswith("cmpl-")
    assert "Paris" in answer.choices[0].text
    assert streamed == answer.choices[0].text


@pytest.mark.anyio
async def test_sixteen_streams_at_once_all_come_to_their_length(
    async_client: AsyncOpenAI,
) -> None:
    ends: dict[int, tuple[str | None, int]] = {}

    async def one(i: int) -> None:
        stream = await async_client.chat.completions.create(
            model=MODEL,
            messages=STORY,
            max_tokens=2 + i,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async with stream:
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        ends[i] = (chunks[-2].choices[0].finish_reason, chunks[-1].usage.completion_tokens)

    with anyio.fail_after(TIMEOUT_S):
        async with anyio.create_task_group() as group:
            for i in range(16):
                group.start_soon(one, i)
    assert ends == {i: ("length", 2 + i) for i in range(16)}


@pytest.mark.anyio
async def test_who_leaves_a_stream_frees_the_place_and_the_others_go_on(
    local: Application, async_client: AsyncOpenAI
) -> None:
    engine = (await local.registry.get(MODEL)).engine
    before = engine.metrics()
    n_others = SMALL["n_parallel"]  # So that one of them waits for a place.
    lengths: list[int] = []

    async def stay() -> None:
        stream = await async_client.chat.completions.create(
            model=MODEL,
            messages=STORY,
            max_tokens=60,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async with stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    lengths.append(chunk.usage.completion_tokens)

    async def until(condition: Callable[[EngineMetrics], bool]) -> None:
        while not condition(engine.metrics()):
            await anyio.sleep(0.005)

    with anyio.fail_after(TIMEOUT_S):
        leaver = await async_client.chat.completions.create(
            model=MODEL, messages=STORY, stream=True, extra_body={"ignore_eos": True}
        )
        async with leaver, anyio.create_task_group() as group:
            assert (await leaver.__anext__()).choices
            for _ in range(n_others):
                group.start_soon(stay)
            await until(lambda now: now.sequences_waiting == 1)
            await leaver.close()
            await until(lambda now: now.sequences_waiting == 0)
            assert lengths == []
    after = engine.metrics()
    assert lengths == [60] * n_others
    assert after.requests_cancelled_total == before.requests_cancelled_total + 1
    assert after.requests_finished_total == before.requests_finished_total + n_others
    assert after.sequences_running == after.sequences_waiting == 0


@pytest.mark.anyio
async def test_the_host_answers_while_sixteen_streams_run(
    host: str, async_client: AsyncOpenAI
) -> None:
    n_started = n_ended = n_answers = 0
    slowest_s = 0.0

    async def stream_once() -> None:
        nonlocal n_started, n_ended
        stream = await async_client.chat.completions.create(
            model=MODEL,
            messages=STORY,
            max_tokens=10,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async with stream:
            n_started += 1
            async for _ in stream:
                pass
            n_ended += 1

    with anyio.fail_after(TIMEOUT_S):
        async with httpx.AsyncClient(base_url=host, timeout=TIMEOUT_S, trust_env=False) as hosts:
            async with anyio.create_task_group() as group:
                for _ in range(16):
                    group.start_soon(stream_once)
                while n_started < 16:
                    await anyio.sleep(0.005)
                while n_ended < 16:
                    asked_at = anyio.current_time()
                    assert (await hosts.get("/own")).text == "the host's"
                    slowest_s = max(slowest_s, anyio.current_time() - asked_at)
                    n_answers += n_ended < 16
                    await anyio.sleep(0.01)
    assert n_answers >= 5
    assert slowest_s < 5


def test_embeddings_are_unit_vectors_in_both_encodings(client: OpenAI) -> None:
    texts = ["Paris is in France.", "A cat sleeps.", "Paris is in France."]
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=texts)
    assert '"embedding":"' in raw.text  # The client asks for base64 and decodes it.
    default = raw.parse()
    floats = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert [item.index for item in default.data] == [0, 1, 2]
    assert default.usage.prompt_tokens == default.usage.total_tokens > 6
    for one, other in zip(default.data, floats.data, strict=True):
        assert len(one.embedding) == 576
        assert norm(one.embedding) == pytest.approx(1, abs=1e-5)
        assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
    first, cat, again = (item.embedding for item in default.data)
    assert first == pytest.approx(again, abs=1e-3)
    assert first != pytest.approx(cat, abs=1e-3)


def test_embeddings_of_fewer_dimensions_are_unit_vectors_again(client: OpenAI) -> None:
    whole = client.embeddings.create(model=MODEL, input="Paris").data[0].embedding
    part = client.embeddings.create(model=MODEL, input="Paris", dimensions=64).data[0].embedding
    assert len(part) == 64
    assert norm(part) == pytest.approx(1, abs=1e-5)
    scale = norm(whole[:64])
    assert part == pytest.approx([value / scale for value in whole[:64]], abs=1e-4)
    with pytest.raises(openai.BadRequestError, match="576") as refused:
        client.embeddings.create(model=MODEL, input="Paris", dimensions=577)
    assert refused.value.param == "dimensions"


def norm(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    listed = client.models.list()
    assert [model.id for model in listed] == [MODEL]
    assert client.models.retrieve(MODEL) == listed.data[0]
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-4o")
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as missing:
        client.chat.completions.create(model="gpt-4o", messages=FRANCE, stream=stream)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert missing.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(
    client: OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt=[100] * 600, stream=stream)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert re.findall(r"\d+", refused.value.message) == ["400", "511", "600"]


def test_a_chat_that_is_too_long_is_refused_with_both_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello " * 600}]
        )
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    numbers = re.search(r"(\d+) tokens of input.* (\d+) tokens", refused.value.message)
    assert numbers is not None
    assert numbers[1] == "511"
    assert 600 < int(numbers[2]) < 680


def test_a_key_is_needed_where_one_is_set(host: str) -> None:
    with client_of(f"{host}/locked", "wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.chat.completions.create(model=MODEL, messages=FRANCE)
    assert refused.value.code == "invalid_api_key"
    with client_of(f"{host}/locked", "secret") as friend:
        assert [model.id for model in friend.models.list()] == [MODEL]


def test_a_parameter_that_is_not_honoured_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="verbosity") as refused:
        client.chat.completions.create(model=MODEL, messages=FRANCE, verbosity="low")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "verbosity")


def test_logprobs_are_the_same_streamed(client: OpenAI) -> None:
    asked = {"model": MODEL, "messages": FRANCE, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**asked, top_logprobs=3)  # type: ignore[call-overload]
    with client.chat.completions.create(  # type: ignore[call-overload]
        **asked, top_logprobs=3, stream=True
    ) as stream:
        choices = [choice for chunk in stream for choice in chunk.choices]
    entries = whole.choices[0].logprobs.content
    text = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text == whole.choices[0].message.content
    assert len(entries) == whole.usage.completion_tokens - 1  # the end is no token of the text
    for entry in entries:
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
    streamed = [e for choice in choices if choice.logprobs for e in choice.logprobs.content]
    assert [e.token for e in streamed] == [e.token for e in entries]
    for one, other in zip(streamed, entries, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.05)


def test_a_prompt_is_echoed_with_its_logprobs(client: OpenAI) -> None:
    prompt = "The capital of France is"
    answer = client.completions.create(
        model=MODEL, prompt=prompt, temperature=0, max_tokens=3, echo=True, logprobs=2
    )
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.tokens is not None
    assert "".join(logprobs.tokens) == choice.text
    assert choice.text.startswith(prompt)
    assert logprobs.text_offset is not None and logprobs.token_logprobs is not None
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    assert logprobs.token_logprobs[0] is None
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs[1:])


def test_the_best_of_many_is_no_less_likely_than_one_of_them(client: OpenAI) -> None:
    def mean(best_of: int) -> float:
        answer = client.completions.create(
            model=MODEL, prompt="Once upon a time", max_tokens=8, seed=7, best_of=best_of,
            logprobs=0, extra_body={"ignore_eos": True},
        )  # fmt: skip
        assert answer.usage is not None and answer.usage.completion_tokens == 8 * best_of
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.token_logprobs is not None
        return sum(logprobs.token_logprobs) / 8

    assert mean(4) >= mean(1) - 0.05


@pytest.mark.parametrize(
    "extra",
    [
        {"typical_p": 0.7, "dry_multiplier": 0.8},
        {"mirostat": 2},
        {"xtc_probability": 0.5, "top_n_sigma": 1.5, "dynatemp_range": 0.3},
        {"samplers": ["temperature", "top_k", "penalties"], "top_k": 20, "repeat_penalty": 1.2},
    ],
)
def test_a_seed_gives_the_same_text_with_llama_servers_samplers(
    client: OpenAI, extra: dict[str, object]
) -> None:
    texts = {
        client.chat.completions.create(
            model=MODEL, messages=STORY, max_tokens=20, seed=11, extra_body=extra
        ).choices[0].message.content
        for _ in range(2)
    }  # fmt: skip
    assert len(texts) == 1 and texts != {""}
