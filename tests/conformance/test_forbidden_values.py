"""Each parameter of each route with values that our OpenAPI document forbids: all are refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from clients import client_of
from fakes import FakeBackend, fake_app

pytestmark = pytest.mark.anyio

# Python takes some of them for each other, JSON does not.
VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, -2, 1.0, 0.0, 0.5, 1e300, 2**31, 2**63, -(2**63) - 1,
    10**30, "", "a", "1", "true", "none", "\ud7ff", [], [True], [0], [1.0], ["a"], [[]], [[1]],
    [[True]],
    [["a", True]], [["a", 1, 2]], [None], [{}], {}, {"a": 1}, {"a": True}, {"": 1},
    {"type": "text"}, {"type": "none"}, {"type": True}, ["a"] * 5, [1] * 2049,
]  # fmt: skip
NEEDED = {
    "model": "fake", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a",
    "content": "a", "tokens": [97], "input_prefix": "a", "input_suffix": "b", "query": "a",
    "documents": ["a"],
}  # fmt: skip


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The path of each operation that has a body, and the body's schema."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                yield path, schema


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


async def test_what_the_document_forbids_of_a_parameter_is_refused() -> None:
    app = fake_app(FakeBackend(n_ctx=1024))
    document = app.openapi("")
    n_forbidden = 0
    async with client_of(app) as client:
        for path, schema in bodies(document):
            whole = {**copy.deepcopy(schema), "components": document["components"]}
            validator = jsonschema.Draft202012Validator(whole)
            properties = resolved(schema, document)["properties"]
            needed = {name: value for name, value in NEEDED.items() if name in properties}
            assert validator.is_valid(needed), path
            for name in properties:
                for value in VALUES:
                    body = {**needed, name: value}
                    if validator.is_valid(body):
                        continue
                    n_forbidden += 1
                    response = await client.post(path.replace("{engine}", "e"), json=body)
                    assert 400 <= response.status_code < 500, (path, name, value, response.text)
                    assert response.json()["error"]["type"] == "invalid_request_error"
    assert n_forbidden > 5000
    await app.aclose()
