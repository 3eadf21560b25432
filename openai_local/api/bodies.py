"""Reads a request into its type, or raises the RequestError that names what is wrong in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from openai_local.api.errors import RequestError

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
# Parts of messages that a model of text cannot read; a chat's front-end shows why to its user.
_MEDIA = {
    "image_url": "Images are",
    "input_audio": "Audio is",
    "video_url": "Video is",
    "file": "Files are",
}
# Fields that are a union told apart by a tag, which pydantic puts into the path.
_TAGGED = {"response_format", "format"}


def parse(given: Mapping[str, Any], body_type: type[Model], refused: Refused) -> Model:
    """``given`` as the type. A null stands for an absent parameter.

    Raises RequestError, which names the parameter that is wrong.
    """
    for name in given:
        if name in refused and not refused[name].allows(given[name]):
            raise RequestError(
                f"Unsupported parameter: '{name}' is not supported by this server:"
                f" {refused[name].why}.",
                param=name,
                code="unsupported_parameter",
            )
    value = {name: what for name, what in given.items() if name not in refused}
    try:
        return body_type.model_validate(value)
    except ValidationError as error:
        raise _refusal(_first(error.errors(include_url=False))) from None


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
    if kind == "literal_error" and isinstance(problem["input"], str):
        media = _MEDIA.get(problem["input"])
        if media is not None and problem["ctx"]["expected"] == "'text'":
            message = f"{media} not supported by this server, only text is"
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
