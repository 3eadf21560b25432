"""The parameters of both generating endpoints over the fake backend."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from clients import MESSAGES, MODEL, events_of, serving
from fakes import FakeBackend, spelling
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from openai_local.api import chat_completions, completions
from openai_local.api.bodies import Refused
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.api.types.completions import CompletionRequest
from openai_local.engine import SamplingParams

pytestmark = pytest.mark.anyio

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROMPT = "<user>hello<assistant>"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 6, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "once", "temperature": 0, "max_tokens": 6, **fields}


def bodies(**fields: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(CHAT, chat(**fields)), (TEXT, text(**fields))]


EXTRAS: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "typical_p": 0.8,
    "top_n_sigma": 1.5, "xtc_probability": 0.3, "xtc_threshold": 0.2, "dynatemp_range": 0.25,
    "dynatemp_exponent": 2.0, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "repeat_penalty": 1.1, "repeat_last_n": 32, "dry_multiplier": 0.8, "dry_base": 1.5,
    "dry_allowed_length": 3, "dry_penalty_last_n": 128, "min_keep": 2, "ignore_eos": True,
    "min_tokens": 2,
}  # fmt: skip


@pytest.mark.parametrize(("path", "body"), bodies(**EXTRAS))
async def test_every_sampling_parameter_reaches_the_engine(path: str, body: dict[str, Any]) -> None:
    backend = FakeBackend()
    more = {
        "seed": 4, "logit_bias": {"97": 1.5}, "dry_sequence_breakers": ["x"],
        "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top-p", "minp", "xtc",
                     "temp"],
    }  # fmt: skip
    async with serving(backend) as client:
        response = await client.post(path, json={**body, **more, "n": 2})
    assert response.status_code == 200
    expected = {**EXTRAS, "logit_bias": {97: 1.5}, "dry_sequence_breakers": ("x",)}
    order = (
        "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"
    )  # fmt: skip
    assert backend.sampled == [
        SamplingParams(**expected, samplers=order, seed=seed) for seed in (4, 5)
    ]


@pytest.mark.parametrize(("path", "body"), bodies(temperature=None, max_tokens=1))
async def test_the_defaults_are_the_specifications_and_nothing_of_llama_servers(
    path: str, body: dict[str, Any]
) -> None:
    backend = FakeBackend()
    async with serving(backend) as client:
        await client.post(path, json=body)
    assert backend.sampled == [SamplingParams()]


async def test_mirostat_is_taken_with_penalties_and_temperature() -> None:
    backend = FakeBackend(sampling_defaults={"top_k": 5.0, "min_p": 0.5})
    fields = {"mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "temperature": 0.5}
    async with serving(backend) as client:
        response = await client.post(CHAT, json=chat(**fields, presence_penalty=1))
    assert response.status_code == 200
    assert backend.sampled == [SamplingParams(**fields, presence_penalty=1)]


async def test_the_letters_of_an_order_are_llama_servers() -> None:
    backend = FakeBackend()
    async with serving(backend) as client:
        await client.post(CHAT, json=chat(samplers="tkp", temperature=0.5, top_k=3, min_p=0.5))
    (sampled,) = backend.sampled
    assert sampled.samplers == ("temperature", "top_k", "top_p")
    assert (sampled.top_k, sampled.min_p) == (3, 0.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"97": 5}, {97: 5}),
        ({"97": False}, {97: float("-inf")}),
        ({"ab": 2}, {97: 2, 98: 2}),
        ({"ab": 2, "97": 1}, {97: 3, 98: 2}),
        ([[97, 5], ["b", -1.5]], {97: 5, 98: -1.5}),
        ([[97, False], [97, 100]], {97: float("-inf")}),
        ([], {}),
    ],
)
async def test_logit_bias_has_all_forms_of_llama_server(
    given: Any, expected: dict[int, float]
) -> None:
    backend = FakeBackend()
    async with serving(backend) as client:
        response = await client.post(CHAT, json=chat(logit_bias=given, temperature=1))
    assert response.status_code == 200
    assert backend.sampled[0].logit_bias == expected


async def test_a_banned_token_never_comes() -> None:
    async with serving(FakeBackend(next_token=lambda tokens: 97)) as client:
        fields = {"logit_bias": [["a", False], [98, 20]], "temperature": 0}
        response = await client.post(TEXT, json=text(**fields))
    assert response.json()["choices"][0]["text"] == "bbbbbb"


LIMITS = [
    ("typical_p", 1.1), ("top_n_sigma", "1"), ("xtc_probability", -0.1), ("xtc_threshold", 2),
    ("dry_multiplier", -1), ("dry_base", 0.5), ("dry_allowed_length", -1),
    ("dry_penalty_last_n", -2), ("dry_sequence_breakers", []), ("dry_sequence_breakers", "x"),
    ("mirostat", 3), ("mirostat", True), ("mirostat", 1.0), ("mirostat_tau", -1),
    ("mirostat_eta", 2), ("dynatemp_range", -1),
    ("dynatemp_exponent", -1), ("repeat_last_n", -2), ("repeat_last_n", 2**31), ("min_keep", -1),
    ("samplers", ["top_k", "topk"]), ("samplers", "kk"), ("samplers", ["infill"]),
    ("samplers", 1), ("min_tokens", 7), ("stop_token_ids", [999]), ("stop_token_ids", [-1]),
    ("stop_token_ids", [True]), ("n_probs", 21), ("cache_prompt", 0), ("t_max_predict_ms", -2),
    ("logit_bias", [[1]]), ("logit_bias", [[1, True]]), ("logit_bias", [[1, 101]]),
    ("logit_bias", {"1": True}), ("logit_bias", {"-1": 1}), ("logit_bias", [[260, 1]]),
    ("logit_bias", {"": 1}), ("return_progress", True), ("post_sampling_probs", True),
    ("n", 129), ("prompt_cache_options", {"mode": "explicit"}), ("verbosity", "low"),
]  # fmt: skip


@pytest.mark.parametrize(("param", "value"), LIMITS)
@pytest.mark.parametrize(("path", "body"), bodies())
async def test_what_is_out_of_range_is_refused_by_name(
    path: str, body: dict[str, Any], param: str, value: Any
) -> None:
    async with serving() as client:
        response = await client.post(path, json={**body, param: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    # Of what is inside it the path goes on.
    assert error["param"].split(".")[0] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_k": 5}, "top_k"),
        ({"top_p": 0.5}, "top_p"),
        ({"dry_multiplier": 1}, "dry_multiplier"),
        ({"top_n_sigma": 1}, "top_n_sigma"),
        ({"samplers": ["top_k"]}, "samplers"),
    ],
)
async def test_what_mirostat_leaves_no_place_for_is_refused(
    fields: dict[str, Any], param: str
) -> None:
    async with serving() as client:
        response = await client.post(CHAT, json=chat(mirostat=1, **fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_the_first_error_wins() -> None:
    async with serving() as client:
        one = await client.post(CHAT, json=chat(n=0, temperature=9, messages=[]))
        two = await client.post(CHAT, json=chat(audio={}, temperature=9))
        three = await client.post(
            CHAT, json=chat(messages=[*MESSAGES, *MESSAGES, {"role": "user", "content": 1}])
        )
    assert one.json()["error"]["param"] == "temperature"
    assert two.json()["error"]["param"] == "audio"
    assert three.json()["error"]["param"] == "messages.[2].content"


async def test_a_refusal_says_why() -> None:
    async with serving() as client:
        response = await client.post(CHAT, json=chat(web_search_options={}))
    assert "it does not search the web" in response.json()["error"]["message"]


# Logprobs


@pytest.mark.parametrize("fields", [{"logprobs": True, "top_logprobs": 2}, {"n_probs": 2}])
async def test_a_chats_logprobs_are_the_same_whole_and_streamed(fields: dict[str, Any]) -> None:
    async with serving(FakeBackend(next_token=spelling("a€b"))) as client:
        whole = await client.post(CHAT, json=chat(**fields))
        streamed = await client.post(CHAT, json=chat(**fields, stream=True))
    completion = ChatCompletion.model_validate(whole.json(), strict=True, extra="forbid")
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and logprobs.refusal is None
    tokens = [(entry.token, entry.bytes, entry.top_logprobs[0].bytes) for entry in logprobs.content]
    assert tokens == [
        ("a", [97], [97]), ("\ufffd", [226], [226]), ("\ufffd", [130], [130]),
        ("\ufffd", [172], [172]), ("b", [98], [98]),
    ]  # fmt: skip
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)
    assert {entry.logprob for entry in logprobs.content} == {logprobs.content[0].logprob}
    chunks = [
        ChatCompletionChunk.model_validate(event, strict=True, extra="forbid")
        for event in events_of(streamed)
    ]
    told: list[Any] = []
    for chunk in chunks:
        choice = chunk.choices[0]
        content = choice.logprobs.content if choice.logprobs else None
        own = b"".join(bytes(entry.bytes or ()) for entry in content or ())
        assert own.decode() == (choice.delta.content or "")
        told += [entry.model_dump() for entry in content or ()]
    assert told == [entry.model_dump() for entry in logprobs.content]


async def test_logprobs_without_alternatives_and_without_tokens() -> None:
    async with serving(FakeBackend(next_token=spelling("a"))) as client:
        bare = await client.post(CHAT, json=chat(logprobs=True))
        none = await client.post(CHAT, json=chat(logprobs=False, top_logprobs=0))
        nothing = await client.post(CHAT, json=chat(logprobs=True, stop="a"))
    assert bare.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert none.json()["choices"][0]["logprobs"] is None
    assert nothing.json()["choices"][0]["logprobs"] == {"content": [], "refusal": None}


async def test_a_control_token_among_the_alternatives_has_a_name_and_null_bytes() -> None:
    async with serving(FakeBackend(next_token=spelling("a"))) as client:
        fields = {"logprobs": True, "top_logprobs": 1, "logit_bias": {"98": 50}, "max_tokens": 2}
        response = await client.post(CHAT, json=chat(**fields))
    _, last = response.json()["choices"][0]["logprobs"]["content"]
    assert last["token"] == "b"  # the bias's; the model's own choice was the end
    assert last["top_logprobs"][0]["token"] == "<|end|>"
    assert last["top_logprobs"][0]["bytes"] is None


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"top_logprobs": 5}, "top_logprobs"),
        (CHAT, {"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"logprobs": True, "n_probs": 3}, "n_probs"),
        (TEXT, {"logprobs": 6}, "logprobs"),
        (TEXT, {"logprobs": True}, "logprobs"),
        (TEXT, {"logprobs": -1}, "logprobs"),
        (TEXT, {"logprobs": 2, "n_probs": 3}, "n_probs"),
    ],
)
async def test_logprobs_out_of_range_are_refused(
    path: str, fields: dict[str, Any], param: str
) -> None:
    body = chat(**fields) if path == CHAT else text(**fields)
    async with serving() as client:
        response = await client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_text_completions_logprobs_have_the_legacy_shape() -> None:
    async with serving(FakeBackend(next_token=spelling("a€b", 4))) as client:
        response = await client.post(TEXT, json=text(logprobs=1))
        bare = await client.post(TEXT, json=text(logprobs=0))
    completion = Completion.model_validate(response.json(), strict=True, extra="forbid")
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b"]
    # From the beginning of the prompt; a character's bytes are all where it begins.
    assert logprobs.text_offset == [4, 5, 5, 5, 6]
    assert logprobs.token_logprobs is not None and logprobs.top_logprobs is not None
    assert len(set(logprobs.token_logprobs)) == 1
    own = zip(logprobs.tokens, logprobs.token_logprobs, strict=True)
    assert [{t: p} for t, p in own] == logprobs.top_logprobs
    assert bare.json()["choices"][0]["logprobs"]["top_logprobs"] == logprobs.top_logprobs


async def test_the_sampled_token_is_told_beside_the_alternatives() -> None:
    async with serving(FakeBackend(next_token=lambda tokens: 97)) as client:
        fields = {"logprobs": 1, "logit_bias": {"98": 50}, "max_tokens": 1}
        response = await client.post(TEXT, json=text(**fields))
    (top,) = response.json()["choices"][0]["logprobs"]["top_logprobs"]
    assert top.keys() == {"a", "b"} and top["a"] > top["b"]


# Labels


async def test_a_retention_in_memory_keeps_a_prompt_from_the_disk() -> None:
    backend = FakeBackend()
    async with serving(backend) as client:
        cached = [
            (await client.post(CHAT, json=chat(prompt_cache_retention=kept))).json()["usage"][
                "prompt_tokens_details"
            ]["cached_tokens"]
            for kept in ("in_memory", "in_memory", "24h", None)
        ]
    # What may go to the disk and what may not are not one.
    assert cached[0] == cached[2] == 0 < cached[1] == cached[3]


async def test_labels_are_taken_and_echoed_where_the_specification_does() -> None:
    labels = {
        "user": "ann", "safety_identifier": "s", "metadata": {"a": "b"}, "store": False,
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "service_tier": "scale",
        "prompt_cache_options": {"mode": "implicit"}, "modalities": ["text"],
    }  # fmt: skip
    async with serving() as client:
        whole = await client.post(CHAT, json=chat(**labels))
        streamed = await client.post(CHAT, json=chat(**labels, stream=True))
        text_one = await client.post(TEXT, json=text(user="ann"))
    assert whole.json()["metadata"] == {"a": "b"}
    assert whole.json()["service_tier"] == "default"
    assert whole.json().keys() == {
        "id", "object", "created", "model", "choices", "usage", "service_tier", "metadata"
    }  # fmt: skip
    assert all("metadata" not in event for event in events_of(streamed))
    assert text_one.status_code == 200


# Streams


@pytest.mark.parametrize(("path", "body"), bodies(stream=True))
async def test_obfuscation_makes_all_pieces_of_a_length_and_changes_nothing_else(
    path: str, body: dict[str, Any]
) -> None:
    options = {"include_obfuscation": True, "include_usage": True}
    async with serving(FakeBackend(next_token=lambda tokens: 97 + len(tokens) % 2)) as client:
        hidden = await client.post(path, json={**body, "stream_options": options})
        plain = await client.post(path, json={**body, "stream_options": {"include_usage": True}})
    blocks = [block for block in hidden.text.split("\n\n") if block][:-2]
    assert {len(block.removeprefix("data: ").encode()) % 64 for block in blocks} == {0}
    *events, usage = events_of(hidden)
    assert all(event.keys() >= {"obfuscation"} for event in events)
    assert "obfuscation" not in usage
    choices = [event["choices"] for event in events_of(plain)]
    assert [event["choices"] for event in (*events, usage)] == choices
    again = {event.pop("obfuscation") for event in events}
    assert len(again) > 1
    assert all("obfuscation" not in event for event in events_of(plain))


@pytest.mark.parametrize(("path", "body"), bodies(stream=True, return_progress=True))
async def test_progress_has_llama_servers_shape(path: str, body: dict[str, Any]) -> None:
    async with serving() as client:
        first = await client.post(path, json=body)
        second = await client.post(path, json=body)
    n = len(PROMPT) if path == CHAT else 4
    for response, cached in ((first, 0), (second, n - 1)):
        told = [e["prompt_progress"] for e in events_of(response) if "prompt_progress" in e]
        assert [p["processed"] for p in told] == [cached, n]
        assert {(p["total"], p["cache"]) for p in told} == {(n, cached)}
        assert all(isinstance(p["time_ms"], int) for p in told)
    texts = [
        choice.get("text", choice.get("delta", {}).get("content", ""))
        for event in events_of(first)
        for choice in event["choices"]
    ]
    assert len("".join(texts)) == 6


@pytest.mark.parametrize(("path", "body"), bodies(timings_per_token=True))
async def test_timings_have_llama_servers_shape(path: str, body: dict[str, Any]) -> None:
    async with serving() as client:
        whole = await client.post(path, json=body)
        streamed = await client.post(path, json={**body, "stream": True})
    timings = whole.json()["timings"]
    assert timings.keys() == {
        "cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second",
        "predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second",
    }  # fmt: skip
    n = len(PROMPT) if path == CHAT else 4
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, n, 6)
    told = [event["timings"]["predicted_n"] for event in events_of(streamed) if "timings" in event]
    assert told == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(("path", "body"), bodies())
async def test_cache_prompt_false_reuses_nothing_and_says_so(
    path: str, body: dict[str, Any]
) -> None:
    async with serving() as client:
        cached = []
        for reuse in (True, True, False, True):
            response = await client.post(path, json={**body, "cache_prompt": reuse})
            cached.append(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
    n = len(PROMPT) if path == CHAT else 4
    assert cached == [0, n - 1, 0, n - 1]


@pytest.mark.parametrize(("path", "body"), bodies(stop_token_ids=[99, 100]))
async def test_a_stop_token_is_no_part_of_the_text(path: str, body: dict[str, Any]) -> None:
    start = None if path == CHAT else 4
    async with serving(FakeBackend(next_token=spelling("abdc", start))) as client:
        response = await client.post(path, json=body)
    (choice,) = response.json()["choices"]
    assert choice.get("text", choice.get("message", {}).get("content")) == "ab"
    assert choice["finish_reason"] == "stop"
    assert response.json()["usage"]["completion_tokens"] == 3


async def test_the_time_to_predict_ends_at_a_line_break() -> None:
    async with serving(FakeBackend(next_token=spelling("a\nb", 4), step_s=0.003)) as client:
        cut = await client.post(TEXT, json=text(t_max_predict_ms=1))
        whole = await client.post(TEXT, json=text(t_max_predict_ms=-1))
    assert [r.json()["choices"][0]["text"] for r in (cut, whole)] == ["a\n", "a\nb"]


VALUES = st.sampled_from(
    [
        True, False, 0, 1, -1, 3, 0.5, 1.5, 2**31, 2**64, 1e308, "", "a", "tkp", "24h", "auto",
        [], {}, ["a"], [97], [256], [[97, 1]], [["a", False]], {"97": 1}, {"a": False},
        ["top_k", "temperature"], {"include_usage": True}, {"include_obfuscation": True}, [None],
        {"mode": "implicit"}, "\u0000", "required", "none", "high", {"enable_thinking": False},
        [{"type": "function", "function": {"name": "f"}}], [{"name": "f"}], {"name": "f"},
        {"type": "function", "function": {"name": "f"}}, {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "f", "schema": {"type": "null"}}},
        {"regex": "a"}, {"type": "string"}, 'root ::= "a"',
    ]
)  # fmt: skip


def parameters(body_type: type[BaseModel], refused: Refused) -> st.SearchStrategy[dict[str, Any]]:
    names = sorted({*body_type.model_fields, *refused} - {"model", "messages", "prompt"})
    return st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(
    for_chat=parameters(ChatCompletionRequest, chat_completions.REFUSED),
    for_text=parameters(CompletionRequest, completions.REFUSED),
)
def test_whatever_is_sent_gets_an_answer_or_is_refused_by_a_name_in_it(
    for_chat: dict[str, Any], for_text: dict[str, Any]
) -> None:
    async def ask() -> None:
        async with serving(FakeBackend(fim=(1, 2, 3))) as client:
            for path, body in ((CHAT, chat(**for_chat)), (TEXT, text(**for_text))):
                response = await client.post(path, json=body)
                if response.status_code == 200:
                    assert '"error":{' not in response.text
                else:
                    assert response.status_code == 400, response.text
                    assert response.json()["error"]["param"].split(".")[0] in body

    anyio.run(ask)
