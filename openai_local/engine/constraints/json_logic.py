"""JSON Schema's ``not``, ``if`` and dependencies, and a ``oneOf``, said by other keywords. Pure.

What cannot be said otherwise is left as it stands, to be refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator

from openai_local.engine.constraints.json_opposites import (
    ALL,
    ANNOTATIONS,
    MAX_DEPTH,
    CannotNegate,
    Json,
    Opposites,
    Schema,
    all_of,
    any_of,
    list_of,
    type_of,
)

MAX_BRANCHES = 8
_RESTATED = frozenset({"not", "if", "then", "else", "dependencies", "dependentRequired",
                       "dependentSchemas", "oneOf"})  # fmt: skip


class Logic:
    """Of the schemas of one document. With ``one_of``, a ``oneOf`` is said otherwise, too."""

    def __init__(self, root: Schema, *, one_of: bool = False) -> None:
        self._opposites = Opposites(root)
        self._one_of = one_of

    def restate(self, schema: Schema, types: frozenset[str] = ALL) -> None:
        """Replace what can be, in place, also in the ``allOf`` of ``schema``, which is of values
        of ``types`` alone."""
        parts = list_of(schema, "allOf")
        if not any(isinstance(s, dict) and (_RESTATED | {"allOf"}) & s.keys()
                   for s in (schema, *parts)):  # fmt: skip
            return
        own = types & self._opposites.types(schema)
        for part in parts:
            if isinstance(part, dict):
                others = (other for other in parts if other is not part)
                self.restate(part, own.intersection(*map(self._opposites.types, others)))
        more: list[Json] = []
        for keywords, restated in (
            (("not",), self._not),
            (("if", "then", "else"), self._condition),
            (("dependencies", "dependentRequired", "dependentSchemas"), self._dependencies),
            (("oneOf",), self._exclusive),
        ):
            if any(keyword in schema for keyword in keywords):
                try:
                    found = list(restated(schema, own))
                except (CannotNegate, RecursionError):
                    continue
                more += (part for part in found if part is not True)
                for keyword in keywords:
                    schema.pop(keyword, None)
        if more:
            schema["allOf"] = [*list_of(schema, "allOf"), *more]

    def _not(self, schema: Schema, types: frozenset[str]) -> Iterator[Json]:
        yield self._opposites.negated(schema["not"], types)

    def _condition(self, schema: Schema, types: frozenset[str]) -> Iterator[Json]:
        if "if" not in schema:
            return  # the others have no meaning then
        then, other = schema.get("then", {}), schema.get("else", {})
        if then in ({}, True) and other in ({}, True):
            return
        negated = self._opposites.negated(schema["if"], types)
        yield any_of([all_of([schema["if"], then]), all_of([negated, other])])

    def _dependencies(self, schema: Schema, types: frozenset[str]) -> Iterator[Json]:
        for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
            given = schema.get(keyword, {})
            if not isinstance(given, dict):
                raise CannotNegate(keyword)
            for name, needed in given.items():
                absent = {"properties": {name: False}}
                if isinstance(needed, str):
                    needed = [needed]
                if isinstance(needed, list):
                    if needed:
                        yield any_of([absent, {"required": list(needed)}])
                else:
                    yield any_of([absent, needed])

    def _exclusive(self, schema: Schema, types: frozenset[str]) -> Iterator[Json]:
        branches = list_of(schema, "oneOf")
        if not self._one_of or not 1 < len(branches) <= MAX_BRANCHES:
            raise CannotNegate("oneOf")
        yield self._one(branches, types)

    def _one(self, branches: list[Json], types: frozenset[str]) -> Json:
        options = []
        for i, branch in enumerate(branches):
            own = types & self._opposites.types(branch)
            others = (*branches[:i], *branches[i + 1 :])
            overlapping = [other for other in others if not self._exclude(branch, other, types)]
            opposites = (self._opposites.negated(other, own) for other in overlapping)
            options.append(all_of([branch, *opposites]))
        return any_of(options)

    def _exclude(self, one: Json, other: Json, types: frozenset[str] = ALL, depth: int = 0) -> bool:
        """Whether it is plain that no value of ``types`` is of both."""
        one, other = self._target(one), self._target(other)
        if one is False or other is False:
            return True
        if not isinstance(one, dict) or not isinstance(other, dict) or depth > MAX_DEPTH:
            return False
        common = types & self._opposites.types(one) & self._opposites.types(other)
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not any(_same(value, more) for value in values for more in others)
        if common - {"object"}:
            return False
        return not common or any(
            self._exclude_member(name, first, second, depth)
            for first, second in ((one, other), (other, one))
            for name in list_of(first, "required")
            if isinstance(name, str)
        )

    def _exclude_member(self, name: Json, one: Schema, other: Schema, depth: int) -> bool:
        """``one`` requires the member: whether ``other`` has none, or another."""
        members, others = _members(one), _members(other)
        if name in others:
            return self._exclude(members.get(name, True), others[name], ALL, depth + 1)
        closed = other.get("additionalProperties") is False and "patternProperties" not in other
        return closed

    def _target(self, schema: Json) -> Json:
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or set(schema) - ANNOTATIONS != {"$ref"}:
                break
            schema = self._opposites.resolved(schema["$ref"])
        return schema


def _values(schema: Schema) -> list[Json] | None:
    """All that it may be, where they are listed."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _same(one: Json, other: Json) -> bool:
    """Whether they may be equal; what is nested is not looked into."""
    nested = isinstance(one, (list, dict)) and isinstance(other, (list, dict))
    return nested or (type_of(one) == type_of(other) and one == other)


def _members(schema: Schema) -> Schema:
    members = schema.get("properties")
    return members if isinstance(members, dict) else {}
