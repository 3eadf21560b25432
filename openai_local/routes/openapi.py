"""Our OpenAPI 3.1 document, derived from the types of bodies and answers, by itself or merged.

It says nothing of models or settings but whether a key is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import openai_local
from openai_local.api.bodies import Refusal
from openai_local.api.types.answers import Error
from openai_local.routes.errors import HEADERS
from openai_local.routes.operations import OPERATIONS, Operation, Types

# Of our components among a host's, as FastAPI tells its own apart.
COMPONENT_PREFIX = "openai_local__"
KEY = "bearerKey"

ERRORS = {
    400: "What is wrong, and in which parameter",
    401: "A key is needed",
    404: "There is no such model",
    413: "The body is too large",
    429: "Too many requests wait already; see Retry-After",
    500: "An error of the server",
    503: "The model is not loaded, or the server stops",
    504: "It took longer than a request may",
}

Json = dict[str, Any]


def document(*, needs_key: bool, server: str = "/") -> Json:
    """The whole of it, for routes below ``server``, a URL or a path."""
    types = _Types()
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, types, needs_key and operation.needs_key
        )
    error = types.one_of((Error,))
    components: Json = {
        "schemas": types.components,
        "responses": {f"Error{status}": _error(status, error) for status in ERRORS},
    }
    if needs_key:
        components["securitySchemes"] = {KEY: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "openai_local",
            "version": openai_local.__version__,
            "description": "A local model behind the OpenAI API. Each path is served with and"
            " without /v1 before it.",
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": components,
    }


def merged(host: Mapping[str, Any], ours: Mapping[str, Any], prefix: str) -> Json:
    """``host``'s document with ``ours`` below ``prefix``; neither is changed.

    Our components and operation ids get names of their own. Raises ValueError where the host has
    a path of ours already.
    """
    whole: Json = deepcopy(dict(host))
    mine = _renamed(deepcopy(dict(ours)))
    prefix = prefix.rstrip("/")
    slug = re.sub(r"\W+", "_", prefix).strip("_")
    paths = whole.setdefault("paths", {})
    for path, item in mine["paths"].items():
        if prefix + path in paths:
            raise ValueError(f"the document has the path {prefix + path} already")
        for operation in item.values():
            operation["operationId"] = f"{slug}_{operation['operationId']}".lstrip("_")
        paths[prefix + path] = item
    components = whole.setdefault("components", {})
    for kind, named in mine["components"].items():
        components.setdefault(kind, {}).update(named)
    return whole


def _operation(operation: Operation, types: _Types, locked: bool) -> Json:
    content: Json = {}
    if operation.answers:
        content["application/json"] = {"schema": types.one_of(operation.answers)}
    if operation.events:
        content["text/event-stream"] = {"schema": _stream(operation, types)}
    if operation.html:
        content["text/html"] = {"schema": {"type": "string"}}
    shape: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": ["openai_local"],
        "responses": {"200": {"description": "The answer", "content": content}},
        # Said of each, so that a host's own rule does not hold for ours.
        "security": [{KEY: []}] if locked else [],
    }
    for status in _statuses(operation, locked):
        shape["responses"][str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    parameters = re.findall(r"\{(\w+)\}", operation.path)
    if parameters:
        shape["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in parameters
        ]
    if operation.body is not None:
        schema = types.body(operation)
        shape["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return shape


def _statuses(operation: Operation, locked: bool) -> list[int]:
    """Of the errors that may come."""
    found = {500}
    if locked:
        found.add(401)
    if "{id}" in operation.path or not (operation.needs_key or operation.path == "/health"):
        found.add(404)
    if operation.path == "/health":
        found.add(503)
    if operation.body is not None:
        found |= {400, 404, 413, 503}
    if operation.events:
        found |= {429, 504}
    return sorted(found)


def _error(status: int, schema: Json) -> Json:
    response: Json = {
        "description": ERRORS[status],
        "content": {"application/json": {"schema": schema}},
    }
    headers = {name: {"schema": {"type": "string"}} for name in HEADERS.get(status, ())}
    return {**response, "headers": headers} if headers else response


def _stream(operation: Operation, types: _Types) -> Json:
    end = ", and the last event is `data: [DONE]`" if operation.done else ""
    return {
        "type": "string",
        "description": "Where the body has `stream: true`: server-sent events, each"
        f" `data: ` and an object{end}. An error is an event, too, after which nothing comes.",
        # As OpenAPI 3.2 says it.
        "x-itemSchema": types.one_of((*operation.events, Error)),
    }


class _Types:
    """All components, and where each type is among them."""

    def __init__(self) -> None:
        bodies = {o.body: o.refused for o in OPERATIONS if o.body is not None}
        sent = {t for o in OPERATIONS for t in (*o.answers, *o.events)} | {Error}
        wanted = sorted({*bodies, *sent}, key=lambda t: t.__name__)
        places, defined = models_json_schema(
            [(t, "validation") for t in wanted], ref_template="#/components/schemas/{model}"
        )
        self.components: Json = defined["$defs"]
        self._refs = {t: places[t, "validation"] for t in wanted}
        for body, refused in bodies.items():
            self._named(body)["properties"].update(
                {name: _neutral(refusal) for name, refusal in refused.items()}
            )

    def one_of(self, types: Types) -> Json:
        refs = [dict(self._refs[t]) for t in types]
        return refs[0] if len(refs) == 1 else {"anyOf": refs}

    def body(self, operation: Operation) -> Json:
        assert operation.body is not None, "it has one"
        if not operation.optional:
            return self.one_of((operation.body,))
        # What the path says wins over the body, whatever that has there.
        whole = deepcopy(self._named(operation.body))
        whole["required"] = [n for n in whole["required"] if n not in operation.optional]
        whole["properties"].update({name: {} for name in operation.optional})
        return whole

    def _named(self, type_: type[BaseModel]) -> Json:
        schema: Json = self.components[self._refs[type_]["$ref"].rpartition("/")[2]]
        return schema


def _neutral(refusal: Refusal) -> Json:
    """The values that ask for nothing."""
    return {
        "enum": [*refusal.neutral, None],
        "description": f"Not supported: {refusal.why}.",
    }


def _renamed(ours: Json) -> Json:
    """With names of our own for all components."""
    pattern = re.compile(r"#/components/(\w+)/")

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, str) and pattern.match(value):
            return pattern.sub(rf"#/components/\1/{COMPONENT_PREFIX}", value, count=1)
        return value

    mine: Json = walk(ours)
    mine["components"] = {
        kind: {COMPONENT_PREFIX + name: item for name, item in named.items()}
        for kind, named in mine["components"].items()
    }
    for item in mine["paths"].values():
        for operation in item.values():
            operation["security"] = [
                {COMPONENT_PREFIX + name: scopes for name, scopes in rule.items()}
                for rule in operation["security"]
            ]
    return mine
