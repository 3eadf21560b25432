"""What a body binds its text to, compiled by the engine, or a 400 that names what it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from openai_local.api.errors import RequestError
from openai_local.api.types.constraints import (
    ConstraintBody,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredOutputs,
)
from openai_local.chat.language import ChatLanguage
from openai_local.chat.reasoning import Thought
from openai_local.engine import (
    CompiledConstraint,
    Constraint,
    ConstraintUnsupported,
    Engine,
    InvalidConstraint,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A constraint, and the parameter that asks for it."""

    constraint: Constraint
    param: str


def asked_for(body: ConstraintBody) -> Asked | None:
    """What the text must be, if anything. Raises RequestError where it must be two things."""
    found = list(_asked_for(body))
    if len(found) > 1:
        first, second = (asked.param.partition(".")[0] for asked in found[:2])
        if first == second:
            first, second = found[0].param, found[1].param
        raise RequestError(
            f"The '{second}' parameter cannot be set together with '{first}'.",
            param=second,
            code="invalid_parameter_combination",
        )
    return found[0] if found else None


def _asked_for(body: ConstraintBody) -> Iterator[Asked]:
    format = body.response_format
    if isinstance(format, JsonSchemaFormat):
        yield _json(format.json_schema.schema_, "response_format.json_schema.schema")
    elif isinstance(format, JsonObjectFormat):
        yield _json(format.schema_, "response_format.schema")
    if body.grammar:
        yield Asked(Constraint("gbnf", body.grammar), "grammar")
    if body.json_schema is not None:
        yield _json(body.json_schema, "json_schema")
    if body.structured_outputs is not None:
        yield from _structured(body.structured_outputs)


def _structured(outputs: StructuredOutputs) -> Iterator[Asked]:
    name = "structured_outputs"
    n_found = 0
    for asked in _structured_parts(outputs, name):
        n_found += 1
        yield asked
    if not n_found:
        raise RequestError(
            f"The '{name}' parameter must have one of json, regex, choice, grammar, json_object.",
            param=name,
            code="invalid_value",
        )


def _structured_parts(outputs: StructuredOutputs, name: str) -> Iterator[Asked]:
    if isinstance(outputs.json_, str):
        yield Asked(Constraint("json_schema", outputs.json_), f"{name}.json")
    elif outputs.json_ is not None:
        yield _json(outputs.json_, f"{name}.json")
    if outputs.regex is not None:
        yield Asked(Constraint("regex", outputs.regex), f"{name}.regex")
    if outputs.choice is not None:
        yield Asked(Constraint("choice", json.dumps(outputs.choice)), f"{name}.choice")
    if outputs.grammar is not None:
        kind = "gbnf" if "::=" in outputs.grammar else "lark"
        yield Asked(Constraint(kind, outputs.grammar), f"{name}.grammar")  # type: ignore[arg-type]
    if outputs.json_object:
        yield Asked(Constraint("json_object"), f"{name}.json_object")


def _json(schema: dict[str, Any] | None, param: str) -> Asked:
    if schema is None:
        return Asked(Constraint("json_object"), param)
    return Asked(Constraint("json_schema", json.dumps(schema, ensure_ascii=False)), param)


def schema_of(asked: Asked) -> dict[str, Any] | None:
    """Of JSON; None where it is of no schema."""
    constraint = asked.constraint
    if constraint.kind == "json_object":
        return {"type": "object"}
    if constraint.kind != "json_schema":
        return None
    try:
        schema = json.loads(constraint.text)
    except (ValueError, RecursionError):
        schema = None
    return schema if isinstance(schema, dict) else None


def behind_thought(asked: Asked, language: ChatLanguage, prompt: str) -> Asked:
    """The same of the answer alone, where the model thinks before it, or has marks before it."""
    reasoning, format = language.reasoning, language.tool_format
    after = opening = ""
    if format is not None and format.answer:
        after = format.answer
    elif reasoning is not None and (thought := reasoning.state(prompt)) is not Thought.NONE:
        after = reasoning.end
        opening = reasoning.start if thought is Thought.MAYBE else ""
    return replace(asked, constraint=replace(asked.constraint, after=after, opening=opening))


async def compiled(engine: Engine, asked: Asked) -> CompiledConstraint:
    """Raises RequestError."""
    try:
        return await engine.compiled(asked.constraint)
    except InvalidConstraint as error:
        raise refusal(error, asked.param) from None


def refusal(error: InvalidConstraint, param: str) -> RequestError:
    """What is wrong with the constraint that ``param`` asks for."""
    if isinstance(error, ConstraintUnsupported):
        text = f"Unsupported '{param}': it cannot be enforced: {error}."
        return RequestError(text, param=param, code="unsupported_value")
    return RequestError(f"Invalid '{param}': {error}.", param=param, code="invalid_value")
