"""Several models in one application: who is loaded, who goes, who waits, and who is told why."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from clients import MESSAGES, OpenRequest, client_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import engine_threads, wait_until
from shelf import MIB, Shelf

import openai_local
from openai_local.application import Application
from openai_local.engine import EngineStopped, ModelLoadFailed
from openai_local.models import entry, registry
from openai_local.models.errors import ModelTooLarge
from openai_local.models.session import Session

pytestmark = pytest.mark.anyio


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": 2, **more}


@asynccontextmanager
async def serving(app: Application) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, "/v1") as client:
        try:
            yield client
        finally:
            await app.aclose()


async def post(client: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await client.post("/chat/completions", json=chat(model, **more))


async def until(condition: Any) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    listed = (await client.get("/models")).json()["data"]
    return {model["id"]: model["status"]["value"] for model in listed}


@contextmanager
def gate(gates: dict[str, threading.Event], id: str) -> Iterator[threading.Event]:
    """Closed until it is set, or left."""
    gates[id] = threading.Event()
    try:
        yield gates[id]
    finally:
        gates[id].set()


async def test_the_model_of_a_request_is_loaded_and_the_one_not_used_for_longest_goes() -> None:
    shelf = Shelf({"a": 4, "b": 4, "c": 4}, budget=9)
    async with serving(shelf.app()) as client:
        for model in ("a", "b", "a", "c"):
            answer = await post(client, model)
            assert (answer.status_code, answer.json()["model"]) == (200, model)
        assert shelf.loads == ["a", "b", "c"]
        assert await states(client) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
        assert (await post(client, "b")).status_code == 200
    assert shelf.loads == ["a", "b", "c", "b"]
    assert shelf.most == 8
    assert not shelf.open


async def test_a_stream_holds_its_model_and_who_waits_for_its_memory_comes_next() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app()
    shelf.options = {"step_s": 0.002}
    stream = OpenRequest(app, "/v1/chat/completions", chat("a", stream=True, max_tokens=60))
    answers: list[httpx.Response] = []
    async with serving(app) as client, anyio.create_task_group() as group:

        async def ask(model: str) -> None:
            answers.append(await post(client, model))

        group.start_soon(stream.run)
        await stream.until(b"data: ")
        group.start_soon(ask, "b")
        await until(lambda: app.registry.state("b").value == "waiting")
        group.start_soon(ask, "a")  # comes after b, though its model is loaded
        await stream.ended.wait()
        assert stream.body.endswith(b"[DONE]\n\n")
    assert [answer.json()["model"] for answer in answers] == ["b", "a"]
    assert shelf.loads == ["a", "b", "a"]
    assert shelf.most == 6


async def test_who_waited_too_long_for_memory_is_told_which_models_hold_it() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app(models_wait_s=0.05)
    async with serving(app) as client:
        with Session(app.registry) as models:
            await models.get("a")
            answer = await post(client, "b")
            health = await client.get("/health")
            assert (await post(client, "a")).status_code == 200
        served = await post(client, "b")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "models_busy")
    assert "(a)" in error["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert (served.status_code, health.status_code) == (200, 200)


async def test_who_leaves_the_queue_holds_up_nobody() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app()
    async with serving(app) as client:
        with Session(app.registry) as models:
            await models.get("a")
            with anyio.move_on_after(0.05):
                await post(client, "b")
            assert (await post(client, "a")).status_code == 200
            assert app.registry.state("b").value == "unloaded"
    assert shelf.loads == ["a"]


async def test_a_request_for_a_model_that_is_being_unloaded_waits_and_loads_it_again() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app()
    async with serving(app) as client:
        await post(client, "a")
        with gate(shelf.close_gates, "a") as free:
            async with anyio.create_task_group() as group:
                group.start_soon(post, client, "b")
                await until(lambda: app.registry.state("a").value == "unloading")
                group.start_soon(post, client, "a")
                await until(lambda: app.registry.state("a").value == "waiting")
                assert shelf.loads == ["a"]
                free.set()
        assert shelf.loads == ["a", "b", "a"]
        assert await states(client) == {"a": "loaded", "b": "unloaded"}


async def test_a_model_that_can_never_fit_is_refused_with_the_numbers() -> None:
    shelf = Shelf({"small": 2, "pinned": 5, "large": 6, "vast": 11}, budget=10)
    app = shelf.app(models=shelf.table(pinned={"pinned": True}))
    async with serving(app) as client:
        vast = await post(client, "vast")
        assert (await post(client, "large")).status_code == 200
        assert (await post(client, "pinned")).status_code == 200
        large = await post(client, "large")
        assert (await post(client, "small")).status_code == 200
        assert await states(client) == {
            "small": "loaded", "pinned": "loaded", "large": "unloaded", "vast": "unloaded",
        }  # fmt: skip
    assert vast.status_code == large.status_code == 503
    assert large.json()["error"]["code"] == "model_too_large"
    assert large.headers["x-should-retry"] == "false"
    assert "11 MiB, more than the 10 MiB" in vast.json()["error"]["message"]
    assert "6 MiB, more than the 5 MiB" in large.json()["error"]["message"]


async def test_pinned_models_are_loaded_at_the_start_and_never_go() -> None:
    shelf = Shelf({"a": 4, "b": 4, "c": 4}, budget=9)
    table = shelf.table(b={"pinned": True, "idle_unload_s": 0})
    app = shelf.app(models=table)
    async with client_of(app, "/v1") as client, app.lifespan():
        assert shelf.loads == ["b"]
        for model in ("a", "c", "a"):
            assert (await post(client, model)).status_code == 200
        assert (await states(client))["b"] == "loaded"
    assert shelf.loads == ["b", "a", "c", "a"]
    assert not shelf.open


async def test_a_pinned_model_that_cannot_be_loaded_keeps_the_host_from_starting() -> None:
    shelf = Shelf({"a": 4, "b": 11}, budget=10)
    with pytest.raises(ModelTooLarge, match="'b' takes 11 MiB"):
        async with shelf.app(models=shelf.table(b={"pinned": True})).lifespan():
            raise AssertionError("it started")
    shelf.broken.add("a")
    with pytest.raises(ModelLoadFailed, match="it is broken"):
        async with shelf.app(models=shelf.table(a={"pinned": True})).lifespan():
            raise AssertionError("it started")
    assert not shelf.open


async def test_what_is_loaded_at_the_start_is_the_default_where_the_settings_name_it() -> None:
    shelf = Shelf({"a": 4, "b": 4})
    for options, loads in (({}, []), ({"default_model": "b"}, ["b"])):
        async with shelf.app(**options).lifespan():
            assert shelf.loads == loads


@pytest.mark.parametrize("idle_unload_s", [0, 0.02])
async def test_an_idle_model_goes_after_its_time_and_comes_back(idle_unload_s: float) -> None:
    shelf = Shelf({"a": 4, "b": 4})
    app = shelf.app(models=shelf.table(a={"idle_unload_s": idle_unload_s}))
    async with serving(app) as client:
        for n in (1, 2):
            with Session(app.registry) as models:
                await models.get("a")
                assert (await post(client, "a")).status_code == 200
                await anyio.sleep(0.05)
                assert shelf.open == ["b", "a"][-n:] or shelf.open == ["a"]
            assert (await post(client, "b")).status_code == 200
            await until(lambda: "a" not in shelf.open)
        assert shelf.loads.count("a") == 2
        assert shelf.open == ["b"]


def test_the_time_to_unload_is_bound_to_no_event_loop_and_keeps_nothing_alive() -> None:
    shelf = Shelf({"a": 4})
    app = shelf.app(idle_unload_s=0.05)
    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(app.registry.get, "a", backend=backend)
        assert shelf.open == ["a"]
        timers = [t for t in threading.enumerate() if t.name == "models of openai_local"]
        assert all(timer.daemon for timer in timers)
        wait_until(lambda: not shelf.open, "the unload")
    anyio.run(app.aclose)
    before = threading.active_count()
    anyio.run(shelf.app(idle_unload_s=100).aclose)
    assert threading.active_count() == before


async def test_closing_ends_the_timer_and_answers_those_who_wait_for_memory() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app(idle_unload_s=1000)
    errors: list[Exception] = []

    async def ask() -> None:
        try:
            await app.registry.get("b")
        except EngineStopped as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        with Session(app.registry) as models:
            await models.get("a")
            group.start_soon(ask)
            await until(lambda: app.registry.state("b").value == "waiting")
            await app.aclose()
    assert len(errors) == 1
    assert not shelf.open
    await until(
        lambda: "models of openai_local" not in [thread.name for thread in threading.enumerate()]
    )
    with pytest.raises(EngineStopped):
        await app.registry.get("b")
    app.registry.open()
    assert (await app.registry.get("b")).id == "b"
    await app.aclose()
    assert not engine_threads()


async def test_a_failed_load_tells_why_to_who_asked_and_poisons_nothing() -> None:
    shelf = Shelf({"a": 4, "bad": 4}, budget=9)
    shelf.broken.add("bad")
    async with serving(shelf.app()) as client:
        assert (await post(client, "a")).status_code == 200
        for _ in range(2):  # it failed fast, so the next request tries again
            failed = await post(client, "bad")
            assert (failed.status_code, failed.json()["error"]["code"]) == (
                503, "model_load_failed",
            )  # fmt: skip
            assert "it is broken" in failed.json()["error"]["message"]
        shown = (await client.get("/models/bad")).json()["status"]
        assert (await client.get("/health")).status_code == 200
        assert (await post(client, "a")).status_code == 200
        shelf.broken.clear()
        assert (await post(client, "bad")).status_code == 200
        assert (await states(client))["bad"] == "loaded"
    assert shown == {"value": "failed", "progress": 0.0, "error": shown["error"]}
    assert "it is broken" in shown["error"]
    assert shelf.loads == ["a", "bad", "bad", "bad"]


async def test_after_a_load_that_failed_late_the_next_is_not_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entry, "SLOW_FAILURE_S", 0)
    monkeypatch.setattr(entry, "BACK_OFF", 1e9)
    shelf = Shelf({"bad": 4, "a": 4})
    shelf.broken.add("bad")
    async with serving(shelf.app()) as client:
        await post(client, "bad")
        refused = await post(client, "bad")
        assert (await post(client, "a")).status_code == 200
        monkeypatch.setattr(entry, "MAX_BACK_OFF_S", 0)
        again = await post(client, "bad")
    assert refused.json()["error"]["code"] == "model_load_failed"
    assert "it is broken" in refused.json()["error"]["message"]
    assert 58 <= int(refused.headers["retry-after"]) <= 60
    assert "retry-after" not in again.headers
    assert shelf.loads == ["bad", "a", "bad"]


async def test_the_progress_of_a_load_is_shown() -> None:
    shelf = Shelf({"a": 4, "b": 4})
    async with serving(shelf.app()) as client, anyio.create_task_group() as group:
        with gate(shelf.gates, "a"):
            group.start_soon(post, client, "a")
            await until(lambda: "a" in shelf.open)
            await until(lambda: client and shelf.loads)
            shown = (await client.get("/models/a")).json()
            assert (await post(client, "b")).status_code == 200  # which does not wait for it
            assert (await client.get("/health")).status_code == 200
        await until(lambda: "a" in shelf.backends)
        group.cancel_scope.cancel()
    assert shown["status"] == {"value": "loading", "progress": 0.25}


async def test_concurrent_first_requests_load_once() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app()
    async with serving(app) as client, anyio.create_task_group() as group:
        with gate(shelf.gates, "a"), gate(shelf.gates, "b"):
            for i in range(20):
                group.start_soon(post, client, "ab"[i % 2])
            await until(lambda: len(app.registry._residency.tickets) == 20)
    assert sorted(shelf.loads) == ["a", "b"]


async def test_a_lease_that_is_dropped_is_released_even_under_the_lock() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app()
    async with serving(app) as client:
        leases = [await app.registry.acquire("a") for _ in range(2)]
        with app.registry._locked():
            leases.pop()  # as the garbage collector may do anywhere
        leases.clear()
        assert (await post(client, "b")).status_code == 200
        assert shelf.open == ["b"]


async def test_who_leaves_just_when_it_is_served_holds_nothing() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app(models_wait_s=5)
    scopes: list[anyio.CancelScope] = []

    async def ask(id: str) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            with await app.registry.acquire(id):
                await anyio.sleep_forever()

    async with serving(app) as client:
        with await app.registry.acquire("a"):
            async with anyio.create_task_group() as group:
                for n, id in enumerate("ba", 1):  # the second waits since the first does
                    group.start_soon(ask, id)
                    await until(lambda n=n: len(app.registry._residency.tickets) == n)
                for scope in scopes:
                    scope.cancel()
        assert (await post(client, "b")).status_code == 200
        assert shelf.open == ["b"]


async def test_an_engine_in_python_holds_its_model_as_requests_do() -> None:
    shelf = Shelf({"a": 6, "b": 6}, budget=10)
    app = shelf.app(models_wait_s=0.05)
    engine = openai_local.Engine.of(app)
    async with serving(app) as client:
        for ends in (True, False):
            stream = engine.stream_chat("hello", model="a", max_tokens=3)
            await anext(stream)
            assert (await post(client, "b")).status_code == 503
            if ends:
                async for _ in stream:
                    pass
            else:
                await stream.aclose()
            assert (await post(client, "b")).status_code == 200
        assert (await engine.chat("hello", model="a", max_tokens=3)).model == "a"
        assert (await engine.embed("hello", model="b")).shape == (1, 8)
    assert shelf.most == 6


async def test_health_is_of_what_must_be_there() -> None:
    shelf = Shelf({"a": 4, "pinned": 4})
    shelf.broken = {"a", "pinned"}
    app = shelf.app(models=shelf.table(pinned={"pinned": True}))
    async with serving(app) as client:
        await post(client, "a")
        assert (await client.get("/health")).status_code == 200
        await post(client, "pinned")
        health = await client.get("/health")
        assert (health.status_code, health.json()["error"]["code"]) == (503, "model_load_failed")
        shelf.broken = set()
        await post(client, "pinned")
        assert (await client.get("/health")).status_code == 200


async def test_other_names_serve_and_answers_have_the_models_own() -> None:
    shelf = Shelf({"a": 4, "b": 4})
    app = shelf.app(models=shelf.table(b={"alias": ["gpt-4o", "gpt-4o-mini"]}))
    async with serving(app) as client:
        answer = await post(client, "gpt-4o")
        found = await client.get("/models/gpt-4o-mini")
        listed = await client.get("/models")
    assert answer.json()["model"] == "b"
    assert [model["id"] for model in listed.json()["data"]] == ["a", "b"]
    assert listed.json()["data"][1] == found.json()
    assert found.json()["aliases"] == ["gpt-4o", "gpt-4o-mini"]


async def test_unknown_names_are_served_only_where_that_is_asked_for() -> None:
    shelf = Shelf({"a": 4, "e": 4})
    models = shelf.table(e={"use": "embedding"})
    body = {"input": "a", "model": "text-embedding-3-small"}
    async with serving(shelf.app(models=models)) as client:
        assert (await post(client, "gpt-4o")).status_code == 404
        assert (await client.post("/embeddings", json=body)).status_code == 404
    async with serving(shelf.app(models=models, serve_unknown_models=True)) as client:
        assert (await post(client, "gpt-4o")).json()["model"] == "a"
        assert (await client.post("/embeddings", json=body)).json()["model"] == "e"
        assert (await client.get("/models/gpt-4o")).status_code == 404


async def test_a_model_serves_what_it_is_there_for() -> None:
    shelf = Shelf({"a": 4, "e": 4})
    models = shelf.table(a={"use": "chat"}, e={"use": "embedding"})
    async with serving(shelf.app(models=models)) as client:
        wrong = [
            await post(client, "e"),
            await client.post("/completions", json={"model": "e", "prompt": "x"}),
            await client.post("/embeddings", json={"model": "a", "input": "x"}),
        ]
        right = await client.post("/tokenize", json={"model": "e", "content": "x"})
    for answer in wrong:
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (
            400, "model", "unsupported_model",
        )  # fmt: skip
    assert right.status_code == 200
    assert shelf.loads == ["e"], "what is refused loads nothing"


async def test_legacy_paths_serve_the_model_they_name_or_the_default() -> None:
    shelf = Shelf({"a": 4, "b": 4, "e": 4})
    async with serving(shelf.app(models=shelf.table(e={"use": "embedding"}))) as client:
        for engine, model in (("davinci", "a"), ("b", "b")):
            answer = await client.post(f"/engines/{engine}/completions", json={"prompt": "x"})
            assert answer.json()["model"] == model
        embedded = await client.post("/engines/ada/embeddings", json={"input": "x"})
    assert embedded.json()["model"] == "e"


async def test_each_model_has_its_own_options_and_else_those_of_all() -> None:
    shelf = Shelf({"a": 4, "e": 4})
    app = shelf.app(
        models=shelf.table(a={"n_ctx": 64, "kv_memory": "1MiB"}, e={"use": "embedding"}),
        n_ctx=128, n_threads=3,
    )  # fmt: skip
    async with serving(app):
        a = (await app.registry.get("a")).engine.config
        e = (await app.registry.get("e")).engine.config
    assert (a.n_ctx, a.n_threads, a.kv_memory, a.n_parallel) == (64, 3, MIB, None)
    assert (e.n_ctx, e.n_threads, e.kv_memory, e.n_parallel) == (128, 3, None, 1)


async def test_without_a_budget_several_models_share_most_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "free_memory", lambda: 12 * MIB)
    shelf = Shelf({"a": 6, "b": 6, "c": 10})
    app = shelf.app()
    async with serving(app) as client:
        await post(client, "a")
        monkeypatch.setattr(registry, "free_memory", lambda: 1 * MIB)
        await post(client, "b")
        refused = await post(client, "c")
    assert shelf.most == 6
    assert "more than the 9 MiB" in refused.json()["error"]["message"]


SIZES = {"a": 3, "b": 4, "c": 6, "d": 7, "bad": 2}
arrivals = st.lists(
    st.tuples(
        st.sampled_from(sorted(SIZES)),
        st.sampled_from([0.0, 0.001, 0.004]),  # before the next arrives
        st.sampled_from([0.0, 0.002, 0.01]),  # for which it is held
        st.sampled_from([None, None, None, 0.0, 0.003]),  # after which it leaves
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(arrivals, st.sampled_from([None, 0.0, 0.002]), st.sampled_from(["asyncio", "trio"]))
def test_whoever_comes_and_goes_everybody_is_answered_within_the_budget(
    script: list[tuple[str, float, float, float | None]], idle_s: float | None, backend: str
) -> None:
    shelf = Shelf(SIZES, budget=10)
    shelf.broken = {"bad"}
    app = shelf.app(idle_unload_s=idle_s)
    outcomes: list[str] = []

    async def one(id: str, held_s: float, patience_s: float | None) -> None:
        with anyio.move_on_after(patience_s) as scope:
            try:
                with await app.registry.acquire(id) as model:
                    assert model.id == id
                    assert not shelf.backends[id].closed
                    await anyio.sleep(held_s)
                    assert model.engine.alive, "it is held"
                    assert not shelf.backends[id].closed
                    outcomes.append(id)
            except ModelLoadFailed:
                assert id == "bad"
                outcomes.append("failed")
        if scope.cancelled_caught:
            outcomes.append("left")

    async def run() -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for id, pause_s, held_s, patience_s in script:
                    group.start_soon(one, id, held_s, patience_s)
                    await anyio.sleep(pause_s)
            await app.aclose()

    anyio.run(run, backend=backend)
    assert len(outcomes) == len(script)
    assert shelf.most <= 10
    assert not shelf.open


def test_names_that_are_used_twice_and_defaults_that_are_none_are_refused() -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(openai_local.ConfigError, match=match):
            openai_local.app(**options)

    a, b = {"path": "a.gguf"}, {"path": "b.gguf"}
    refused("models.b: 'a' is the name of another", models={"a": a, "b": {**b, "alias": "a"}})
    refused("models.a: 'a' is the name of another", models={"a": {**a, "alias": "a"}})
    refused("models.a: 'a' is the name", model="a.gguf", models={"a": b})
    refused("default_model: no model 'c' in a, b", models={"a": a, "b": b}, default_model="c")
    refused("models_dir: there is no directory", models_dir="/nowhere")
    refused("models.a.*String should match pattern", models={"a": {**a, "alias": "b\n"}})
    template = {"use": "embedding", "chat_template": "a.jinja"}
    refused("models.a: a model for embeddings has no", models={"a": {**a, **template}})


@pytest.mark.model
async def test_two_real_models_take_turns_in_memory_for_one(
    smollm2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f"""
        models_memory = "400MiB"
        cache_ram = "8MiB"
        n_ctx = 512
        n_parallel = 4
        n_threads = 1
        n_threads_batch = 1
        [models.one]
        path = "{smollm2}"
        alias = "first"
        [models.two]
        path = "two.gguf"
        """
    )
    (tmp_path / "two.gguf").symlink_to(smollm2)
    caplog.set_level("INFO", "openai_local")
    app = openai_local.app(config=file)
    stream = OpenRequest(
        app, "/v1/chat/completions", chat("first", stream=True, max_tokens=40, ignore_eos=True)
    )
    body = {"temperature": 0, "seed": 1, "max_tokens": 8}
    async with serving(app) as client:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(stream.run)
                await stream.until(b'"content":"')
                two = await post(client, "two", **body)
            assert stream.body.endswith(b"[DONE]\n\n")
            assert await states(client) == {"one": "unloaded", "two": "loaded"}
            assert len(engine_threads()) == 1
            one = await post(client, "one", **body)
            assert (await post(client, "two", **body)).json()["choices"] == two.json()["choices"]
            vectors = await client.post("/embeddings", json={"model": "two", "input": "x"})
    assert one.json()["model"] == "one"
    assert one.json()["choices"] == two.json()["choices"], "they are the same weights"
    assert len(vectors.json()["data"][0]["embedding"]) == 576
    assert sum("to make room" in record.getMessage() for record in caplog.records) == 3
    assert not engine_threads()
