"""What all routes share: paths, methods, keys, bodies, prefixes, models and health."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import MESSAGES, MODEL, OpenRequest, client_of, serving
from fakes import FakeBackend, fake_app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Model
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import openai_local
from openai_local.engine import Engine, ModelLoadFailed
from openai_local.routes import ROUTES

pytestmark = pytest.mark.anyio

CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_every_route_is_served_with_and_without_v1(prefix: str) -> None:
    async with serving() as client:
        for row in ROUTES:
            path = row.path.replace("{id:path}", MODEL).replace("{engine:path}", "any")
            response = await client.request(row.method, prefix + path, json={})
            assert response.status_code == (200 if row.method == "GET" else 400), path
            assert (await client.request("DELETE", prefix + path)).status_code == 405


async def test_models_are_listed_and_found() -> None:
    async with serving(model_id="org/my-model") as client:
        listed = await client.get("/v1/models")
        found = await client.get("/v1/models/org/my-model")
        missing = await client.get("/v1/models/other")
    assert listed.json() == {"object": "list", "data": [found.json()]}
    ours = {"aliases": [], "status": {"value": "unloaded", "progress": 0.0}}
    public = {name: value for name, value in found.json().items() if name not in ours}
    assert found.json() == {**public, **ours}
    model = Model.model_validate(public, strict=True, extra="forbid")
    assert (model.id, model.owned_by) == ("org/my-model", "openai_local")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert "org/my-model" in missing.json()["error"]["message"]


async def test_an_embedding_model_stands_beside_the_first() -> None:
    async with serving(embedding_model="minilm.gguf", embedding_model_id="minilm") as client:
        listed = await client.get("/v1/models")
        legacy = await client.post("/v1/engines/ada/embeddings", json={"input": "a"})
        named = await client.post("/v1/embeddings", json={"input": "a", "model": MODEL})
    assert [model["id"] for model in listed.json()["data"]] == [MODEL, "minilm"]
    assert legacy.json()["model"] == "minilm"
    assert named.json()["model"] == MODEL


async def test_an_unknown_model_is_a_404_that_lists_those_that_exist() -> None:
    async with serving() as client:
        response = await client.post("/v1/chat/completions", json={**CHAT, "model": "gpt-4o"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert MODEL in error["message"]


async def test_a_key_is_asked_for_but_not_by_health() -> None:
    async with serving(api_key="secret") as client:
        health = await client.get("/v1/health")
        for header in (None, "Bearer", "Bearer wrong", "Basic secret", "secret"):
            headers = {"authorization": header} if header else {}
            response = await client.get("/v1/models", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        right = await client.get("/v1/models", headers={"authorization": "Bearer secret"})
    assert (health.status_code, right.status_code) == (200, 200)


async def test_other_paths_and_methods_are_refused_in_openais_shape() -> None:
    async with serving() as client:
        path = await client.get("/v1/nothing")
        method = await client.get("/v1/chat/completions")
        head = await client.head("/v1/models")
    assert (path.status_code, path.json()["error"]["code"]) == (404, "unknown_url")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert method.json()["error"]["type"] == "invalid_request_error"
    assert head.status_code == 200


@pytest.mark.parametrize("body", ["", "[", "[]", "null", '"x"', "{} {}", '{"model": NaN}', "\xff"])
async def test_a_body_that_is_no_json_object_is_a_400(body: str) -> None:
    async with serving() as client:
        response = await client.post("/v1/completions", content=body.encode("latin-1"))
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_too_large_is_a_413() -> None:
    app = fake_app(max_body_bytes=100)
    request = OpenRequest(app, "/v1/completions", {"prompt": "x" * 100})
    await request.run()
    assert request.status == 413
    assert b'"body_too_large"' in request.body


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    "model messages prompt input temperature top_p n stop seed max_tokens max_completion_tokens"
    " presence_penalty frequency_penalty logit_bias stream stream_options user top_k min_p"
    " repeat_penalty ignore_eos dimensions encoding_format tools response_format".split()
)


def test_garbage_never_gets_past_a_400() -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(fields, json_values, max_size=6), st.booleans())
    def run(garbage: dict[str, Any], valid_base: bool) -> None:
        base = {"model": MODEL, "max_tokens": 2} if valid_base else {}
        anyio.run(post_all, {**base, **garbage})

    async def post_all(body: dict[str, Any]) -> None:
        async with serving() as client:
            for path in ("chat/completions", "completions", "embeddings"):
                response = await client.post(f"/v1/{path}", json=body)
                assert response.status_code in (200, 400, 404), response.text
                if response.status_code != 200:
                    assert response.json()["error"].keys() == {"message", "type", "param", "code"}

    run()


@pytest.mark.parametrize("prefix", ["/v1", "/some/deep/prefix", "/some/deep/prefix/v1"])
async def test_it_answers_at_any_prefix_and_leaves_the_host_its_own(prefix: str) -> None:
    seen: list[Any] = []

    async def own(request: Request) -> PlainTextResponse:
        return PlainTextResponse("the host's")

    class Watching:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            before = dict(scope)
            await self.app(scope, receive, send)
            seen.append({key for key in scope if scope[key] is not before.get(key)})

    local = fake_app()
    host = Starlette(routes=[Mount(prefix, Watching(local)), Route("/own", own)])
    async with client_of(host) as client:
        chat = await client.post(f"{prefix}/chat/completions", json=CHAT)
        ours = await client.get(f"{prefix}/nothing")
        theirs = await client.get("/nothing")
        hosts = await client.get("/own")
    await local.aclose()
    assert chat.status_code == 200
    assert ours.json()["error"]["code"] == "unknown_url"
    assert theirs.text == "Not Found"
    assert hosts.text == "the host's"
    assert seen == [set(), set()]


# BaseHTTPMiddleware leaves a generator of its own to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette.requests:ResourceWarning")
async def test_a_hosts_middleware_and_exception_handlers_leave_answers_alone() -> None:
    async def dispatch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    async def handler(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("the host's", 418)

    local = fake_app()
    host = Starlette(
        routes=[Mount("/v1", local)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
        exception_handlers={Exception: handler, 400: handler, 404: handler, 405: handler},
    )
    async with client_of(host) as client:
        streamed = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        whole = await client.post("/v1/chat/completions", json=CHAT)
        statuses = [
            (await client.post("/v1/chat/completions", json={})).status_code,
            (await client.get("/v1/nothing")).status_code,
            (await client.get("/v1/completions")).status_code,
        ]
    await local.aclose()
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert whole.status_code == 200
    assert statuses == [400, 404, 405]


async def test_health_is_503_while_a_load_is_going_and_after_one_failed() -> None:
    gate: list[bool] = []
    outcome: list[Exception] = [ModelLoadFailed(Path("fake.gguf"), "damaged")]
    loads = 0

    def slow(config: Any) -> Engine:
        def open_backend(config: Any, stopping: Any) -> FakeBackend:
            nonlocal loads
            loads += 1
            while not gate:
                time.sleep(0.005)
            if outcome:
                raise outcome.pop()
            return FakeBackend()

        return Engine(config, open_backend=open_backend)

    app = openai_local.Application(fake_app().settings, slow)
    async with client_of(app) as client:
        assert (await client.get("/health")).status_code == 200
        statuses: list[int] = []

        async def chat() -> None:
            statuses.append((await client.post("/v1/chat/completions", json=CHAT)).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(chat)
            await anyio.sleep(0.05)
            loading = await client.get("/health")
            gate.append(True)
        failed = await client.get("/health")
        await chat()
        well = await client.get("/health")
    await app.aclose()
    assert (loading.status_code, loading.json()["error"]["code"]) == (503, "model_loading")
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "model_load_failed")
    assert "damaged" in failed.json()["error"]["message"]
    assert (well.status_code, well.json()) == (200, {"status": "ok"})
    assert statuses == [503] * 5 + [200]
    assert loads == 2


class DyingBackend(FakeBackend):
    """Fails where no step expects it, until it is mended."""

    broken = True

    def truncate(self, slot: int, n_keep: int) -> bool:
        if self.broken:
            raise RuntimeError("a fault that nobody foresaw")
        return super().truncate(slot, n_keep)


async def test_an_engine_that_dies_answers_everybody_and_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = 0

    def open_engine(config: Any) -> Engine:
        nonlocal loads
        loads += 1
        return Engine(config, open_backend=lambda config, stopping: DyingBackend())

    app = openai_local.Application(fake_app().settings, open_engine)
    async with client_of(app) as client:
        dead = await client.post("/v1/chat/completions", json=CHAT)
        # Nobody asks for the model, only whether it is ready.
        with anyio.fail_after(10):
            while (await client.get("/health")).status_code != 200 or loads < 2:
                await anyio.sleep(0.01)
        # It dies at once again: not before the next request is it tried once more.
        again = await client.post("/v1/chat/completions", json=CHAT)
        with anyio.fail_after(10):
            while (await client.get("/health")).status_code == 200:
                await anyio.sleep(0.01)
        unready = await client.get("/health")
        monkeypatch.setattr(DyingBackend, "broken", False)
        well = await client.post("/v1/chat/completions", json=CHAT)
        ready = await client.get("/health")
    await app.aclose()
    assert dead.status_code == again.status_code == 503
    assert dead.json()["error"]["code"] == "engine_stopped"
    assert unready.json()["error"]["code"] == "engine_stopped"
    assert (well.status_code, ready.status_code, loads) == (200, 200, 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_middleware_that_replays_the_body_does_not_freeze_the_loop(stream: bool) -> None:
    local = fake_app()
    body = json.dumps({**CHAT, "stream": stream}).encode()

    async def replaying(scope: Any, receive: Any, send: Any) -> None:
        async def again() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        await local(scope, again, send)

    with anyio.fail_after(10):
        async with client_of(replaying) as client:
            response = await client.post("/v1/chat/completions")
    await local.aclose()
    assert response.status_code == 200


async def test_many_mistakes_in_one_body_are_refused_at_the_first() -> None:
    async with serving() as client:
        body = {**CHAT, "messages": [1] * 100_000}
        response = await client.post("/v1/chat/completions", json=body)
        many = {"model": MODEL, "prompt": ["x"] * 2000, "n": 2}
        bounded = await client.post("/v1/completions", json=many)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages.[0]")
    assert (bounded.status_code, bounded.json()["error"]["param"]) == (400, "n")


async def test_a_failed_load_closes_its_engine(tmp_path: Path) -> None:
    backend = FakeBackend()
    app = fake_app(backend, chat_template=tmp_path / "missing.jinja")
    async with client_of(app) as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    await app.aclose()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_load_failed")
    assert backend.closed


async def test_an_abandoned_application_frees_its_model() -> None:
    backend = FakeBackend()

    def open_slowly(config: Any, stopping: Any) -> FakeBackend:
        time.sleep(0.1)
        return backend

    app = openai_local.Application(
        fake_app().settings, lambda config: Engine(config, open_backend=open_slowly)
    )
    await app.registry.get(MODEL)
    del app
    with anyio.fail_after(10):
        while not backend.closed:
            gc.collect()
            await anyio.sleep(0.02)


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(openai_local.ConfigError, match="embedding_model_id"):
        fake_app(embedding_model="other/fake.gguf")
