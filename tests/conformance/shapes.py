"""What an answer must look like: the official client's types, and the published schema if present.

Fields that are ours are listed here, each with where it may stand; any other unknown one fails.
"""

from __future__ import annotations

import copy
import functools
import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from jsonschema import Draft202012Validator, ValidationError
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from pydantic import BaseModel, ConfigDict
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

SPECIFICATION = Path(__file__).parents[3] / "shared" / "openapi" / "openai.json"


class Models(BaseModel):
    """The client reads a list of models as a page, which is no type of its answer."""

    model_config = ConfigDict(extra="forbid")
    object: str
    data: list[Model]


class Error(BaseModel):
    """What the client looks into for its exceptions."""

    model_config = ConfigDict(extra="forbid")
    error: ErrorObject


# The client's type, the published schema's name, and our own fields by their place.
SHAPES: dict[str, tuple[type[BaseModel], str, frozenset[str]]] = {
    "chat": (
        ChatCompletion,
        "CreateChatCompletionResponse",
        # Echoed as OpenAI does for stored completions only, which is another schema.
        frozenset({"timings", "metadata", "choices.message.reasoning_content"}),
    ),
    "chat chunk": (
        ChatCompletionChunk,
        "CreateChatCompletionStreamResponse",
        frozenset({"timings", "prompt_progress", "choices.delta.reasoning_content"}),
    ),
    "completion": (Completion, "CreateCompletionResponse", frozenset({"timings"})),
    "completion chunk": (
        Completion,
        "CreateCompletionResponse",
        frozenset({"timings", "prompt_progress"}),
    ),
    "embeddings": (CreateEmbeddingResponse, "CreateEmbeddingResponse", frozenset()),
    "models": (Models, "ListModelsResponse", frozenset({"data.aliases", "data.status"})),
    "model": (Model, "Model", frozenset({"aliases", "status"})),
    "error": (Error, "ErrorResponse", frozenset()),
}


def check(shape: str, value: Any) -> None:
    """``value`` is one ``shape`` of SHAPES, of the client's types and of the schema."""
    client_type, _, ours = SHAPES[shape]
    public = copy.deepcopy(value)
    for place in ours:
        _remove(public, place.split("."))
    if shape in _EXCEPTIONS:
        _EXCEPTIONS[shape](public)
    client_type.model_validate(public, strict=True, extra="forbid")
    found = list(problems(shape, public))
    assert not found, f"{found} in {json.dumps(value)[:600]}"


def problems(shape: str, value: Any) -> Iterator[str]:
    """What the published schema finds wrong, a line each: place, rule, and value or its type."""
    if not SPECIFICATION.exists():
        return
    for error in map(_innermost, _validator(SHAPES[shape][1]).iter_errors(value)):
        place = ".".join(part for part in error.absolute_path if isinstance(part, str))
        what = "string" if isinstance(error.instance, str) else str(error.instance)[:80]
        yield f"{place}: {error.validator} {what}"


def _innermost(error: ValidationError) -> ValidationError:
    """Of a union: what is wrong in the branch that goes furthest into the value."""
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    return error


def check_error(response: httpx.Response) -> None:
    """A 4xx in OpenAI's error shape, that says something."""
    assert 400 <= response.status_code < 500, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/json"
    value = response.json()
    check("error", value)
    assert value["error"]["message"].strip()
    assert value["error"]["type"]


def _remove(value: Any, place: list[str]) -> None:
    if isinstance(value, list):
        for item in value:
            _remove(item, place)
    elif isinstance(value, dict):
        if len(place) == 1:
            value.pop(place[0], None)
        else:
            _remove(value.get(place[0]), place[1:])


def _first_token(completion: dict[str, Any]) -> None:
    """That of an echoed prompt comes after nothing: OpenAI's answers have nulls for its logprobs,
    of which types and schema know nothing."""
    for choice in completion.get("choices", ()):
        logprobs = choice["logprobs"] or {}
        for key in ("token_logprobs", "top_logprobs"):
            if logprobs.get(key) and logprobs[key][0] is None:
                del logprobs[key][0]


def _unfinished(chunk: dict[str, Any]) -> None:
    """Types and schema are those of whole answers; the nulls in OpenAI's chunks are in its text."""
    _first_token(chunk)
    for choice in chunk.get("choices", ()):
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    if "usage" in chunk and chunk["usage"] is None:
        del chunk["usage"]


def _custom(chunk: dict[str, Any]) -> None:
    """Types and schema know custom calls in whole answers only; in chunks they are put as those."""
    for choice in chunk.get("choices", ()):
        for call in choice["delta"].get("tool_calls") or ():
            if "custom" in call:
                custom = call.pop("custom")
                assert custom.keys() <= {"name", "input"} and call.pop("type", "custom") == "custom"
                call["function"] = {"arguments": custom["input"]}


def _decode(embeddings: dict[str, Any]) -> None:
    """Types and schema know one of the two encodings."""
    for item in embeddings.get("data", ()):
        if isinstance(item["embedding"], str):
            item["embedding"] = np.frombuffer(b64decode(item["embedding"]), "<f4").tolist()


# Where an answer is right and both others are wrong: what makes of it something that they know.
_EXCEPTIONS: dict[str, Callable[[dict[str, Any]], None]] = {
    "chat chunk": _custom,
    "completion": _first_token,
    "completion chunk": _unfinished,
    "embeddings": _decode,
}


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    document = _strict(json.loads(SPECIFICATION.read_text()))
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry = Registry().with_resource("openai.json", resource)
    reference = {"$ref": f"openai.json#/components/schemas/{name}"}
    return Draft202012Validator(reference, registry=registry)


def _strict(schema: Any) -> Any:
    """With OpenAPI 3.0's ``nullable``, which JSON Schema does not know, as a branch."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: _strict(item) for key, item in schema.items() if key != "nullable"}
    return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest
