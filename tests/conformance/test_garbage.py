"""Whatever is posted to a route: a 4xx in OpenAI's shape that says why, or a right answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from clients import MESSAGES, MODEL, client_of
from fakes import EOG, FakeBackend, fake_app, letters
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from shapes import check, check_error

from openai_local.routes import ROUTES

# Thousands, where somebody wants to know.
N_EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "100"))
HANG_S = 30.0
thorough = settings(max_examples=N_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}},
    },
}
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
# Bodies that are right, or will be.
VALID: dict[str, list[dict[str, Any]]] = {
    "/chat/completions": [
        {**CHAT, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 2},
        {**CHAT, "logprobs": True, "top_logprobs": 2, "logit_bias": {"97": -5}, "user": "u"},
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"}},
        {
            **CHAT,
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": None, "refusal": "no"},
                {"role": "tool", "content": "b", "tool_call_id": "c"},
            ],
        },
        {**CHAT, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {
            **CHAT,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "s", "schema": TOOL["function"]["parameters"]},
            },
        },
        {**CHAT, "top_k": 3, "min_p": 0.1, "samplers": ["top_k"], "dry_multiplier": 0.5},
    ],
    "/completions": [
        {"model": MODEL, "prompt": "a", "max_tokens": 2, "echo": True, "logprobs": 2, "best_of": 2},
        {"model": MODEL, "prompt": [[1, 2], [3]], "max_tokens": 2, "stop_token_ids": [5]},
    ],
    "/embeddings": [
        {"model": MODEL, "input": ["a", "b"], "encoding_format": "base64", "dimensions": 2},
        {"model": MODEL, "input": [[1, 2], [3]]},
    ],
    "/tokenize": [{"content": "a", "add_special": True}],
    "/detokenize": [{"tokens": [97, 98]}],
    "/apply-template": [{"messages": MESSAGES}],
    "/infill": [{"input_prefix": "a", "input_suffix": "b", "n_predict": 1}],
    "/rerank": [{"model": MODEL, "query": "a", "documents": ["b", "c"], "top_n": 1}],
}
PATHS = [
    row.path.replace("{engine:path}", "any/name") for row in ROUTES if row.method == "POST"
]  # fmt: skip
SHAPE = {"chat/completions": "chat", "completions": "completion", "embeddings": "embeddings"}


def short(tokens: Sequence[int]) -> int:
    """Ends soon, since some garbage is a right request for a great deal."""
    return letters(tokens) if len(tokens) % 16 else EOG


def valid(path: str) -> list[dict[str, Any]]:
    """Of a route that is not in VALID: nobody's, but a body with what most have."""
    found = [bodies for end, bodies in VALID.items() if path.endswith(end)]
    return found[0] if found else [{**CHAT, "prompt": "a", "input": "a", "content": "a"}]


class Server:
    """The fake application on an event loop of its own, for all examples of a test."""

    def __init__(self, portal: BlockingPortal, client: httpx.AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def post(self, path: str, content: bytes, content_type: str = "application/json") -> Any:
        async def post() -> httpx.Response:
            with anyio.fail_after(HANG_S):
                headers = {"content-type": content_type} if content_type else {}
                return await self._client.post(f"/v1{path}", content=content, headers=headers)

        return self._portal.call(post)

    def works(self) -> None:
        """The next good request is answered."""
        good = {"model": MODEL, "prompt": "a", "max_tokens": 1, "temperature": 0}
        response = self.post("/completions", json.dumps(good).encode())
        assert response.status_code == 200
        check("completion", response.json())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start_blocking_portal() as portal:
        app = fake_app(FakeBackend(n_ctx=1024, n_slots=8, next_token=short))
        with portal.wrap_async_context_manager(client_of(app)) as client:
            yield Server(portal, client)
            portal.call(app.aclose)


def check_answer(path: str, response: httpx.Response) -> None:
    """An error of the client's, or what was asked for."""
    if response.status_code != 200:
        check_error(response)
    elif response.headers["content-type"] == "application/json":
        for end, shape in SHAPE.items():
            if path.endswith(f"/{end}"):
                check(shape, response.json())
                break
    else:
        assert response.text.endswith("data: [DONE]\n\n"), response.text[-500:]


big = st.sampled_from(
    [2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, -1, 0, 1e308, -1e308, 5e-324]
)
odd_texts = st.sampled_from(["", "\x00", "\ud800", "\udfff\ud800", "\u202e", "𝕏" * 50, "x" * 5000])
odd_numbers = st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | big | odd_numbers | odd_texts
    | st.text(max_size=20)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
not_objects = st.one_of(
    values.filter(lambda value: not isinstance(value, dict)).map(json.dumps).map(str.encode),
    st.binary(max_size=60),
)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all that is in ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*before, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*before, key))


@st.composite
def near_misses(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A right body of which one to three things are changed."""
    body = json.loads(json.dumps(draw(st.sampled_from(valid(path)))))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(sorted(places(body), key=str)))
        holder = body
        for key in way:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "add", "nest", "repeat"]))
        if change == "replace":
            holder[last] = draw(values)
        elif change == "remove":
            del holder[last]
        elif change == "nest":
            for _ in range(draw(st.integers(1, 300))):
                holder[last] = [holder[last]]
        elif change == "repeat":
            holder[last] = [holder[last]] * draw(st.integers(0, 200))
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=10))] = draw(values)
        if not body:
            break
    return body


def written(body: dict[str, Any], twice: str | None) -> str:
    """As JSON, NaN and lone surrogates included; the key ``twice`` also with a null before."""
    text = json.dumps(body)
    return text if twice is None else f"{{{json.dumps(twice)}: null, {text[1:]}"


@pytest.mark.parametrize("path", PATHS)
def test_near_misses(server: Server, path: str) -> None:
    @thorough
    @given(near_misses(path), st.booleans())
    def run(body: dict[str, Any], twice: bool) -> None:
        text = written(body, next(iter(body)) if twice and body else None)
        check_answer(path, server.post(path, text.encode()))

    run()
    server.works()


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_object_is_refused(server: Server, path: str) -> None:
    @thorough
    @given(not_objects)
    @example(b"")
    @example(b"{")
    @example(b"\xef\xbb\xbf{}")
    @example(b"[" * 100_000)
    @example(b'{"a":' * 100_000)
    @example(b'{"model": ' + b"9" * 100_000 + b"}")
    @example(b'{"model": "\\ud800"}')
    @example(b'{"model": "\xed\xa0\x80"}')
    @example(b'{"model": 1e999}')
    @example(b'{"model": NaN}')
    @example(b'{"model": "\x00"}')
    def run(content: bytes) -> None:
        check_error(server.post(path, content))

    run()
    server.works()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "latin-1", "cp037"])
def test_another_encoding_is_refused(server: Server, path: str, encoding: str) -> None:
    text = json.dumps({**VALID["/embeddings"][0], "input": "ä+"}, ensure_ascii=False)
    check_error(server.post(path, text.encode(encoding)))
    server.works()


@thorough
@given(
    st.sampled_from(PATHS),
    st.sampled_from(
        [
            "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
            "multipart/form-data; boundary=x", "application/json; charset=utf-16", "a", ";", "/",
            "application/octet-stream", "application/xml",
        ]
    ),
    values,
)  # fmt: skip
def test_a_content_type_changes_nothing(
    server: Server, path: str, content_type: str, value: Any
) -> None:
    """OpenAI's clients always say JSON; who says something else gets the same answers."""
    check_answer(path, server.post(path, json.dumps(value).encode(), content_type))
    good = json.dumps({"model": MODEL, "input": "a"}).encode()
    assert server.post("/embeddings", good, content_type).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_arbitrary_fields(server: Server, path: str) -> None:
    names = sorted({name for body in valid(path) for name in body})

    @thorough
    @given(st.dictionaries(st.sampled_from(names) | st.text(max_size=8), values, max_size=6))
    def run(body: dict[str, Any]) -> None:
        check_answer(path, server.post(path, json.dumps(body).encode()))

    run()
    server.works()
