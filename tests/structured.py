"""Whether a compiled constraint accepts a text or a value; the schemas of the benchmark."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
from fakes import FakeVocabulary
from hypothesis import assume

from openai_local.engine import ConstraintUnsupported, InvalidConstraint
from openai_local.engine.constraints.compiler import Compiled, ConstraintCompiler
from openai_local.engine.messages import Constraint, ConstraintKind

BENCH = Path(__file__).parents[2] / "shared" / "jsonschemabench" / "sample.jsonl"
MAX_STEPS = 20_000


def compiler() -> ConstraintCompiler:
    """Over a vocabulary of bytes."""
    return ConstraintCompiler(FakeVocabulary())


def compiled(kind: ConstraintKind, text: Any, **kwargs: str) -> Compiled:
    text = text if isinstance(text, str) else json.dumps(text)
    return compiler().compile(Constraint(kind, text, **kwargs))


def accepts(constraint: Compiled, text: str) -> bool:
    """Whether a generation may give exactly this text."""
    matcher = constraint._matcher.deep_copy()
    tokens = constraint.vocabulary.tokenize(text, add_special=False, parse_special=False)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def accepts_value(constraint: Compiled, value: Any, schema: Any) -> bool:
    """Whether it accepts the value in any order of its objects' properties.

    The grammar fixes an order, that of the schema, and JSON Schema knows none: so all that the
    grammar may want are tried.
    """
    return _Search(constraint, schema).accepts(value)


def check_values(schema: Any, values: list[Any]) -> None:
    """That the constraint of the schema takes those that are valid, if there is one."""
    try:
        constraint = compiled("json_schema", schema)
    except InvalidConstraint:
        assume(False)
    validator = jsonschema.Draft202012Validator(schema)
    for value in values:
        assert accepts_value(constraint, value, schema) is validator.is_valid(value), value


class _Search:
    """Writes a value into a matcher, going back where a property came too early."""

    def __init__(self, constraint: Compiled, schema: Any) -> None:
        self._matcher = constraint._matcher.deep_copy()
        self._before = _orders(schema)
        self._n_left = MAX_STEPS

    def accepts(self, value: Any) -> bool:
        return any(self._matcher.is_accepting() for _ in self._write(value))

    def _feed(self, text: str) -> Iterator[None]:
        """Once with ``text`` consumed, if it may come; then it is taken back."""
        self._n_left -= 1
        assert self._n_left > 0, "too many orders to try"
        data = list(text.encode())
        n = self._matcher.try_consume_tokens(data)
        if n == len(data):
            yield
        if n:
            self._matcher.rollback(n)

    def _write(self, value: Any) -> Iterator[None]:
        if isinstance(value, dict):
            for _ in self._feed("{"):
                yield from self._members(list(value), value, "")
        elif isinstance(value, list):
            for _ in self._feed("["):
                yield from self._items(value, 0)
        else:
            yield from self._feed(json.dumps(value, ensure_ascii=False))

    def _items(self, items: list[Any], at: int) -> Iterator[None]:
        if at == len(items):
            yield from self._feed("]")
        elif at == 0:
            for _ in self._write(items[0]):
                yield from self._items(items, 1)
        else:
            for _ in self._feed(", "):
                for _ in self._write(items[at]):
                    yield from self._items(items, at + 1)

    def _members(self, names: list[str], value: dict[str, Any], comma: str) -> Iterator[None]:
        if not names:
            yield from self._feed("}")
        has_unlisted = False
        for name in names:
            if self._before.get(name, set()) & set(names):
                continue
            if name not in self._before:
                if has_unlisted:
                    continue  # the order of those makes no difference
                has_unlisted = True
            rest = [other for other in names if other != name]
            for _ in self._feed(comma + json.dumps(name, ensure_ascii=False) + ": "):
                for _ in self._write(value[name]):
                    yield from self._members(rest, value, ", ")


def _orders(schema: Any) -> dict[str, set[str]]:
    """The names that a schema lists, each with those that always come before it."""
    before: dict[str, set[str]] = {}
    after: dict[str, set[str]] = {}
    stack = [schema]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += item.values()
            listed = item.get("properties")
            names = list(listed) if isinstance(listed, dict) else []
            for i, name in enumerate(names):
                before.setdefault(name, set()).update(names[:i])
                after.setdefault(name, set()).update(names[i + 1 :])
            required = item.get("required")
            for name in required if isinstance(required, list) else []:
                before.setdefault(str(name), set())
            for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
                for name, needed in item.get(keyword, {}).items():
                    for other in [name, *(needed if isinstance(needed, list) else [])]:
                        before.setdefault(other, set())
        elif isinstance(item, list):
            stack += item
    return {name: names - after.get(name, set()) for name, names in before.items()}


def bench_schemas() -> list[dict[str, Any]]:
    """id, schema, valid and invalid instances, of the JSONSchemaBench sample; none if absent."""
    if not BENCH.exists():
        return []
    return [json.loads(line) for line in BENCH.read_text().splitlines()]


@dataclass
class Counts:
    """What became of schemas and their instances; ids and values of what was judged wrongly."""

    n_compiled: int = 0
    refused: Counter[str | None] = field(default_factory=Counter)
    false_accepts: list[tuple[str, Any]] = field(default_factory=list)
    false_rejects: list[tuple[str, Any]] = field(default_factory=list)


def judge(rows: list[dict[str, Any]]) -> Counts:
    """Of the rows of :func:`bench_schemas`."""
    counts = Counts()
    for row in rows:
        try:
            constraint = compiled("json_schema", row["schema"])
        except ConstraintUnsupported as error:
            counts.refused[error.keyword] += 1
            continue
        counts.n_compiled += 1
        for value in row["valid"]:
            if not accepts_value(constraint, value, row["schema"]):
                counts.false_rejects.append((row["id"], value))
        for value in row["invalid"]:
            if accepts_value(constraint, value, row["schema"]):
                counts.false_accepts.append((row["id"], value))
    return counts
