"""The OpenAPI document: all routes are in it, what is sent fits it, and hosts can take it in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from clients import MESSAGES, MODEL, client_of, serving
from fakes import FakeBackend, fake_app, spelling
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

import openai_local
from openai_local.application import Application
from openai_local.routes import ROUTES
from openai_local.routes.operations import OPERATIONS

pytestmark = pytest.mark.anyio

DOCUMENT = openai_local.app("model.gguf").openapi("/v1")


def operations(document: Any = DOCUMENT) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        yield from value.get("discriminator", {}).get("mapping", {}).values()
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from refs(item)


def check_refs(document: Any) -> None:
    for ref in refs(document):
        kind, name = re.fullmatch(r"#/components/(\w+)/(.+)", ref).groups()  # type: ignore[union-attr]
        assert name in document["components"][kind], ref


def fits(value: Any, schema: Any, document: Any = DOCUMENT) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def answer_schema(path: str, kind: str = "application/json", method: str = "post") -> Any:
    content = DOCUMENT["paths"][path][method]["responses"]["200"]["content"]
    schema = content[kind]["schema"]
    return schema["x-itemSchema"] if kind == "text/event-stream" else schema


def body_schema(path: str) -> Any:
    return DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


@pytest.mark.parametrize("key", [None, "secret"])
def test_the_document_is_valid_and_complete_in_itself(key: str | None) -> None:
    document = fake_app(api_key=key).openapi()
    validate(document)
    check_refs(document)
    json.dumps(document, allow_nan=False)


def test_every_route_is_in_the_document_and_no_other() -> None:
    served = {(row.method, row.path.replace(":path}", "}"), row.needs_key) for row in ROUTES}
    assert served == {(o.method, o.path, o.needs_key) for o in OPERATIONS}
    assert len(ROUTES) == len(OPERATIONS) == len(list(operations()))


def test_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.body], ids=lambda o: o.id)
def test_every_field_of_a_body_is_described(operation: Any) -> None:
    schema = body_schema(operation.path)
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    body: type[BaseModel] = operation.body
    names = {field.alias or name for name, field in body.model_fields.items()}
    assert set(schema["properties"]) == names | set(operation.refused)
    assert schema["additionalProperties"] is False


def test_the_values_that_ask_for_nothing_are_in_it_and_others_are_not() -> None:
    schema = body_schema("/chat/completions")
    good = {"model": MODEL, "messages": MESSAGES, "store": False, "audio": None, "stop": "a"}
    fits(good, schema)
    for wrong in ({"store": True}, {"stop": 1}, {"messages": []}, {"nothing": 1}):
        assert not Draft202012Validator({**schema, "components": DOCUMENT["components"]}).is_valid(
            {**good, **wrong}
        )


def test_a_legacy_path_makes_the_model_needless() -> None:
    fits({"input": "a"}, body_schema("/engines/{engine}/embeddings"))
    assert not Draft202012Validator(
        {**body_schema("/embeddings"), "components": DOCUMENT["components"]}
    ).is_valid({"input": "a"})


def test_a_key_is_asked_for_where_one_is_needed() -> None:
    locked = {
        path: operation["security"]
        for _, path, operation in operations(fake_app(api_key="secret").openapi())
    }
    assert locked.pop("/health") == locked.pop("/docs") == locked.pop("/openapi.json") == []
    assert all(rule == [{"bearerKey": []}] for rule in locked.values())
    assert all(operation["security"] == [] for _, _, operation in operations())


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/chat/completions", {"messages": MESSAGES}),
    (
        "/chat/completions",
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "timings_per_token": True,
         "service_tier": "flex", "metadata": {"a": "b"}},
    ),
    ("/completions", {"prompt": "a"}),
    ("/completions", {"prompt": ["a", "b"], "logprobs": 1, "echo": True}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_probs": 1, "return_tokens": True}),
    ("/infill", {"input_prefix": "a", "input_suffix": "b", "response_fields": ["content"]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_generated_answers_and_chunks_fit_it(path: str, body: dict[str, Any]) -> None:
    body = {"model": MODEL, "max_tokens": 5, **body}
    streamed = {**body, "stream": True, "return_progress": True}
    if path != "/infill":
        streamed["stream_options"] = {"include_usage": True, "include_obfuscation": True}
    fits(body, body_schema(path))
    fits(streamed, body_schema(path))
    async with serving(FakeBackend(fim=(1, 2, 3))) as client:
        whole = await client.post(path, json=body)
        stream = await client.post(path, json=streamed)
    assert whole.status_code == stream.status_code == 200, whole.text
    fits(whole.json(), answer_schema(path))
    data = [block[6:] for block in stream.text.split("\n\n")[:-1] if block != "data: [DONE]"]
    assert len(data) > 1
    for piece in data:
        fits(json.loads(piece), answer_schema(path, "text/event-stream"))


HERMES = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def test_calls_and_errors_in_a_stream_fit_it() -> None:
    backend = FakeBackend(n_ctx=4096, next_token=spelling(HERMES))
    body = {"model": MODEL, "messages": MESSAGES, "tools": [TOOL], "temperature": 0}
    async with serving(backend) as client:
        whole = await client.post("/chat/completions", json=body)
        stream = await client.post("/chat/completions", json={**body, "stream": True})
    assert whole.json()["choices"][0]["message"]["tool_calls"], whole.text
    fits(whole.json(), answer_schema("/chat/completions"))
    for block in stream.text.split("\n\n")[:-2]:
        fits(json.loads(block[6:]), answer_schema("/chat/completions", "text/event-stream"))
    failing = FakeBackend(faults=lambda batch: -3 if len(batch) == 1 else 0)
    async with serving(failing) as client:
        body = {"model": MODEL, "messages": MESSAGES, "stream": True}
        failed = await client.post("/chat/completions", json=body)
    last = json.loads(failed.text.split("\n\n")[-2][6:])
    assert "error" in last
    fits(last, answer_schema("/chat/completions", "text/event-stream"))


async def test_the_other_answers_fit_it() -> None:
    async with serving(FakeBackend(can_rank=False)) as client:
        for path, body in (
            ("/embeddings", {"model": MODEL, "input": "a"}),
            ("/embeddings", {"model": MODEL, "input": "a", "encoding_format": "base64"}),
            ("/tokenize", {"content": "aé"}),
            ("/tokenize", {"content": "aé", "with_pieces": True}),
            ("/detokenize", {"tokens": [97]}),
            ("/apply-template", {"messages": MESSAGES}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            fits(answer.json(), answer_schema(path))
        for path, shown in (("/health", "/health"), ("/models", "/models")):
            fits((await client.get(path)).json(), answer_schema(shown, method="get"))
        model = (await client.get(f"/models/{MODEL}")).json()
        fits(model, answer_schema("/models/{id}", method="get"))
        refused = (await client.post("/tokenize", json={})).json()
        error = DOCUMENT["components"]["responses"]["Error400"]["content"]["application/json"]
        fits(refused, error["schema"])
    async with serving(FakeBackend(can_rank=True)) as client:
        body = {"query": "a", "documents": ["b"], "return_documents": True}
        fits((await client.post("/rerank", json=body)).json(), answer_schema("/rerank"))


async def get(app: Any, path: str, **headers: str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("prefix", ["/v1", "/some/deep/prefix"])
async def test_where_it_is_mounted_is_where_its_document_says(prefix: str) -> None:
    local = fake_app()
    fastapi = FastAPI()
    fastapi.mount(prefix, local)
    for host in (fastapi, Starlette(routes=[Mount(prefix, local)])):
        document = (await get(host, f"{prefix}/openapi.json")).json()
        assert document["servers"] == [{"url": prefix}]
    assert (await get(local, "/openapi.json")).json()["servers"] == [{"url": "/"}]
    assert (await get(local, "/v1/openapi.json")).json()["servers"] == [{"url": "/v1"}]


async def test_a_prefix_that_a_proxy_cuts_off_is_known_by_root_path() -> None:
    transport = httpx.ASGITransport(fake_app(), root_path="/proxied")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        document = (await client.get("/openapi.json")).json()
    assert document["servers"] == [{"url": "/proxied"}]


async def test_both_are_open_to_all_unless_switched_off() -> None:
    for path in ("/openapi.json", "/docs", "/v1/docs"):
        assert (await get(fake_app(api_key="secret"), path)).status_code == 200
        off = await get(fake_app(docs=False), path)
        assert (off.status_code, off.json()["error"]["code"]) == (404, "unknown_url")


class Page(HTMLParser):
    """Ids, links, and what would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if tag == "a":
            self.links.add(given.get("href") or "")
        elif tag in ("script", "img", "link", "iframe") or "src" in given:
            self.fetched.append(tag)


async def test_the_page_shows_every_route_and_asks_nobody_for_anything() -> None:
    app = FastAPI()
    app.mount("/v1", fake_app())
    response = await get(app, "/v1/docs")
    page = Page(response.text)
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert page.fetched == []
    for operation in OPERATIONS:
        assert f"{operation.method} /v1{operation.path}" in response.text
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= page.ids
    assert page.links - {f"#{name}" for name in inside} == {"/v1/openapi.json"}


class Model(BaseModel):
    """A host's type whose name we have, too."""

    weight: int


def host_of(local: Application, prefix: str = "/v1") -> FastAPI:
    app = FastAPI()

    @app.post("/models")
    async def create(model: Model) -> Model:
        return model

    app.mount(prefix, local)
    own = app.openapi
    app.openapi = lambda: openai_local.merge_openapi(own(), local, prefix)  # type: ignore[method-assign]
    return app


async def test_a_hosts_document_takes_ours_in() -> None:
    app = host_of(fake_app(api_key="secret"), "/ai/v1")
    for _ in range(2):
        document = (await get(app, "/openapi.json")).json()
        validate(document)
        check_refs(document)
        assert {path for path in document["paths"] if path != "/models"} == {
            "/ai/v1" + operation.path for operation in OPERATIONS
        }
        schemas = document["components"]["schemas"]
        assert set(schemas["Model"]["properties"]) == {"weight"}
        assert "owned_by" in schemas["openai_local__Model"]["properties"]
        chat = document["paths"]["/ai/v1/chat/completions"]["post"]
        assert chat["security"] == [{"openai_local__bearerKey": []}]
        assert "openai_local__bearerKey" in document["components"]["securitySchemes"]
        ids = [operation["operationId"] for _, _, operation in operations(document)]
        assert len(set(ids)) == len(ids)
    assert (await get(app, "/docs")).status_code == 200


def test_two_of_ours_fit_into_one_host_and_a_path_that_is_there_does_not() -> None:
    local = fake_app()
    own = {"openapi": "3.1.0", "info": {"title": "host", "version": "1"}, "paths": {}}
    once = openai_local.merge_openapi(own, local, "/a")
    twice = openai_local.merge_openapi(once, local, "/b")
    validate(twice)
    assert len(twice["paths"]) == 2 * len(once["paths"]) > 0
    assert own["paths"] == {}
    with pytest.raises(ValueError, match="/a/health"):
        openai_local.merge_openapi(twice, local, "/a/")
