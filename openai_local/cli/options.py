"""All settings as options, made of their fields, so that none is missing or out of date."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from openai_local.cli.completion import complete_models, complete_values
from openai_local.config import ENV_PREFIX, ModelOptions, Settings
from openai_local.models.sources import HubSource

SHORT = {"model": "-m"}
_METAVARS = {int: "NUMBER", float: "NUMBER", ByteSize: "SIZE", Path: "PATH", str: "TEXT"}

# Those that decide how a model is loaded, as opposed to how it is served.
MODEL_FIELDS = (
    *("model", "config", "models_dir", "offline", "requantize"),
    *ModelOptions.model_fields,
)


def all_fields() -> tuple[str, ...]:
    """The settings that one word can give; tables of models need a file."""
    names = dict.fromkeys((*MODEL_FIELDS, *Settings.model_fields))  # the model's first
    return tuple(name for name in names if _metavar(Settings.model_fields[name]))


def is_size(name: str) -> bool:
    """Whether a setting is in bytes."""
    field = Settings.model_fields.get(name)
    return field is not None and ByteSize in _kinds(field)


def flag(field: str) -> str:
    """How a field is written on the command line."""
    return "--" + field.replace("_", "-")


def takes_settings(fields: Collection[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each field; those that were given go to its ``**settings``.

    They go as text, for the settings themselves to check.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            function(**{k: v for k, v in given.items() if k not in fields or v is not None})

        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        made = {name: _annotation(name, Settings.model_fields[name]) for name in fields}
        hints = {**get_type_hints(function, include_extras=True), **made}
        parameters = own + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in fields
        ]
        signature = inspect.Signature(
            [parameter.replace(annotation=hints[parameter.name]) for parameter in parameters]
        )
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = hints
        return command

    return decorate


def _annotation(name: str, field: FieldInfo) -> Any:
    words = [flag(name)]
    kind: Any = str | None
    metavar = _metavar(field) if not _names_model(field) else "MODEL"
    if metavar == "FLAG":
        words, kind, metavar = [f"{flag(name)}/--no{flag(name)[1:]}"], bool | None, None
    if name in SHORT:
        words.append(SHORT[name])
    return Annotated[
        kind,
        typer.Option(
            *words,
            help=f"{field.description}.{_default(field)} [env:{ENV_PREFIX}{name.upper()}]",
            metavar=metavar,
            show_default=False,
            autocompletion=_completion(field),
        ),
    ]


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is None or default is PydanticUndefined:
        return ""
    if isinstance(default, bool):
        default = "on" if default else "off"
    if ByteSize in _kinds(field):
        default = ByteSize(default).human_readable()
    return f" [default: {default}]"


def _metavar(field: FieldInfo) -> str | None:
    """None for what one word cannot give."""
    kinds = _kinds(field)
    if bool in kinds:
        return "FLAG"
    for kind in kinds:
        if get_origin(kind) is Literal:
            return "|".join(map(str, get_args(kind)))
        if kind in _METAVARS:
            return _METAVARS[kind]
        if get_origin(kind) is tuple:
            return "TEXT,..."  # such a setting splits it, as that of a variable
    return None


def _names_model(field: FieldInfo) -> bool:
    return HubSource in _kinds(field)


def _completion(field: FieldInfo) -> Callable[[str], list[str]] | None:
    """None where the shell completes files."""
    if _names_model(field):
        return complete_models
    for kind in _kinds(field):
        if get_origin(kind) is Literal:
            return complete_values([str(value) for value in get_args(kind)])
    return None


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    annotation = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for kind in get_args(annotation) if kind is not NoneType)
    return (annotation,)
