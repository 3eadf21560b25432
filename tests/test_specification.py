"""Every parameter that OpenAI's specification has, against our types and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from openai_local.api import chat_completions, completions, embeddings
from openai_local.api.bodies import Refused
from openai_local.api.types.chat_completions import ChatCompletionRequest, Message
from openai_local.api.types.completions import CompletionRequest
from openai_local.api.types.embeddings import EmbeddingRequest

SPECIFICATION = Path(__file__).parents[2] / "shared" / "openapi" / "openai.json"

pytestmark = pytest.mark.skipif(not SPECIFICATION.exists(), reason="the specification is not here")

BODIES: dict[str, tuple[type[BaseModel], Refused, dict[str, Any]]] = {
    "CreateChatCompletionRequest": (
        ChatCompletionRequest,
        chat_completions.REFUSED,
        {"model": "m", "messages": [{"role": "user", "content": "a"}]},
    ),
    "CreateCompletionRequest": (
        CompletionRequest,
        completions.REFUSED,
        {"model": "m", "prompt": "a"},
    ),
    "CreateEmbeddingRequest": (EmbeddingRequest, embeddings.REFUSED, {"model": "m", "input": "a"}),
}


def schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads(SPECIFICATION.read_text())["components"]["schemas"]
    return schemas


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Without references at its top, and without the branch that is null."""
    while True:
        if "$ref" in schema:
            schema = schemas()[schema["$ref"].rpartition("/")[2]]
            continue
        branches = [b for b in schema.get("anyOf", ()) if b.get("type") != "null"]
        if len(branches) != 1:
            return schema
        schema = branches[0]


def properties(name: str) -> dict[str, Any]:
    """Those of a body, of all that it is made of."""
    found: dict[str, Any] = {}

    def walk(schema: dict[str, Any]) -> None:
        schema = resolved(schema)
        for part in schema.get("allOf", ()):
            walk(part)
        found.update(schema.get("properties", {}))

    walk(schemas()[name])
    return found


def is_valid(name: str, **fields: Any) -> bool:
    body_type, _, needed = BODIES[name]
    try:
        body_type.model_validate({**needed, **fields})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", BODIES)
def test_every_parameter_is_in_our_types_or_refused_with_a_reason(name: str) -> None:
    body_type, refused, _ = BODIES[name]
    expected = set(properties(name))
    assert len(expected) >= 5
    assert expected <= set(body_type.model_fields) | set(refused)
    assert set(body_type.model_fields).isdisjoint(refused)
    assert all(refusal.why for refusal in refused.values())


@pytest.mark.parametrize("name", BODIES)
def test_what_is_needed_there_is_needed_here(name: str) -> None:
    def required(schema: dict[str, Any]) -> set[str]:
        schema = resolved(schema)
        parts = [required(part) for part in schema.get("allOf", ())]
        return set(schema.get("required", ())).union(*parts)

    body_type, _, needed = BODIES[name]
    # A null prompt is the beginning of a text, so is none.
    expected = required(schemas()[name]) - {"prompt"}
    assert {n for n, f in body_type.model_fields.items() if f.is_required()} == expected
    assert expected <= set(needed)


@pytest.mark.parametrize("name", BODIES)
def test_ranges_and_choices_are_those_of_the_specification(name: str) -> None:
    body_type, _, _ = BODIES[name]
    n_checked = 0
    for param, schema in properties(name).items():
        if param not in body_type.model_fields:
            continue
        schema = resolved(schema)
        for bound, step in (("minimum", -1), ("maximum", 1)):
            if bound in schema and param != "seed":  # written there as a rounded float
                n_checked += 1
                assert is_valid(name, **{param: schema[bound]}), param
                assert not is_valid(name, **{param: schema[bound] + step}), param
        for value in schema.get("enum", ()):
            n_checked += 1
            assert is_valid(name, **{param: value}), (param, value)
        if "maxLength" in schema:
            n_checked += 1
            assert is_valid(name, **{param: "x" * schema["maxLength"]})
            assert not is_valid(name, **{param: "x" * (schema["maxLength"] + 1)})
    assert n_checked >= {"CreateEmbeddingRequest": 3}.get(name, 12)


def test_lists_have_the_bounds_of_the_specification() -> None:
    chat = "CreateChatCompletionRequest"
    assert is_valid(chat, stop=["a"] * 4) and not is_valid(chat, stop=["a"] * 5)
    assert is_valid(chat, metadata={str(i): "v" for i in range(16)})
    assert not is_valid(chat, metadata={str(i): "v" for i in range(17)})
    assert not is_valid(chat, metadata={"k" * 65: "v"})
    assert not is_valid(chat, metadata={"k": "v" * 513})
    assert not is_valid(chat, metadata={"k": 1})
    embedding = "CreateEmbeddingRequest"
    for one in ("a", 1, [1]):
        assert is_valid(embedding, input=[one] * 2048)
        assert not is_valid(embedding, input=[one] * 2049)
    assert is_valid(embedding, input=[[1] * 5000])


def test_a_null_stands_for_an_absent_parameter_where_it_may() -> None:
    for name, (body_type, _, needed) in BODIES.items():
        for param in set(body_type.model_fields) - set(needed):
            assert is_valid(name, **{param: None}), (name, param)


def test_every_field_of_a_message_is_in_our_types() -> None:
    ours = {
        get_args(message.model_fields["role"].annotation)[0]: message
        for message in get_args(get_args(Message)[0])
    }
    checked = 0
    for branch in schemas()["ChatCompletionRequestMessage"]["oneOf"]:
        schema = resolved(branch)
        (role,) = schema["properties"]["role"]["enum"]
        if role in ours:
            checked += 1
            assert set(schema["properties"]) <= set(ours[role].model_fields), role
            needed = {n for n, f in ours[role].model_fields.items() if f.is_required()}
            assert needed == set(schema["required"]), role
    assert checked >= 5
