"""Reads a body into its type, or raises the RequestError that names what is wrong in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import ClientDisconnect, Request

from openai_local.routes.errors import RequestError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a parameter of the specification is not honoured, and which values ask for nothing."""

    why: str
    neutral: tuple[Any, ...] = ()

    def allows(self, given: Any) -> bool:
        return given is None or any(
            type(given) is type(neutral) and given == neutral for neutral in self.neutral
        )


Refused = Mapping[str, Refusal]

_NAME = re.compile(r"\w+\Z")
_TYPES = {"str", "int", "list", "bool", "float", "NamedTool"}
_TAGS = {
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "text",
    "refusal",
    "function",
    "custom",
}
# Fields that are a union told apart by a tag, which pydantic puts into the path.
_TAGGED = {"response_format", "format"}


async def read(
    request: Request,
    body_type: type[Model],
    refused: Refused,
    max_bytes: int,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """The body, ``fixed`` in place of what it says. A null stands for an absent parameter.

    Raises RequestError, which names the parameter that is wrong.
    """
    try:
        value = from_json(await _bytes(request, max_bytes), allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    value.update(fixed)
    for name in [name for name in value if name in refused]:
        if not refused[name].allows(value.pop(name)):
            raise RequestError(
                f"Unsupported parameter: '{name}' is not supported by this server:"
                f" {refused[name].why}.",
                param=name,
                code="unsupported_parameter",
            )
    try:
        return body_type.model_validate(value)
    except ValidationError as error:
        raise _refusal(_first(error.errors(include_url=False))) from None


async def _bytes(request: Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with aclosing(request.stream()) as stream:
            async for part in stream:
                size += len(part)
                if size > max_bytes:
                    text = f"The body is larger than {max_bytes} bytes."
                    raise RequestError(text, code="body_too_large", status=413)
                parts.append(part)
    except ClientDisconnect:
        raise RequestError("The client closed the connection.") from None
    return b"".join(parts)


def _first(problems: list[ErrorDetails]) -> ErrorDetails:
    """The first; of a union's branches, the one that fits the type, or comes furthest into it."""
    field = len(_parts(problems[0]["loc"]))
    here = [p for p in problems if _parts(p["loc"])[:field] == _parts(problems[0]["loc"])]
    return max(here, key=lambda p: (not p["type"].endswith("_type"), len(_parts(p["loc"]))))


def _refusal(problem: ErrorDetails) -> RequestError:
    param = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":  # the client's own word, whatever it looks like
        param = _path(problem["loc"][:-1])
        param = f"{param}.{problem['loc'][-1]}" if param else str(problem["loc"][-1])
    kind, message = problem["type"], problem["msg"]
    if kind == "missing":
        text = f"Missing required parameter: '{param}'."
        return RequestError(text, param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        text = f"Unknown parameter: '{param}'."
        return RequestError(text, param=param, code="unknown_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return RequestError(f"Invalid '{param}': {message}.", param=param, code=code)


def _path(loc: tuple[int | str, ...]) -> str:
    return ".".join(f"[{part}]" if isinstance(part, int) else part for part in _parts(loc))


def _parts(loc: tuple[int | str, ...]) -> list[int | str]:
    """Without the branches of unions that pydantic tried, of which the client knows nothing."""
    parts: list[int | str] = []
    for i, part in enumerate(loc):
        is_tag = i > 0 and i + 1 < len(loc) and _is_tag(loc[i - 1], part)
        if isinstance(part, int) or (_NAME.match(part) and part not in _TYPES and not is_tag):
            parts.append(part)
    return parts


def _is_tag(before: int | str, part: int | str) -> bool:
    """Whether ``part``, which is not the last, is the tag of a type and no field."""
    if isinstance(before, int):  # after a list's index comes the tag, then the field
        return part in _TAGS
    return before in _TAGGED or before.startswith("tagged-union[")
