"""Reads JSON that is still arriving: a value as it comes, or a call in an object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from openai_local.chat.tool_formats.cursor import Cursor, Emit, Reading

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_SCALAR_END = re.compile(r"[\s,\]}<\[{]")


def read_json(cursor: Cursor, emit: Emit) -> Reading[bool]:
    """Pass on a value as it stands; False if the text ends within it.

    An object that came as a JSON string is passed on as the object.
    """
    yield from cursor.skip_space()
    first = yield from cursor.peek()
    if first and first in "{[":
        return (yield from _read_nested(cursor, emit))
    parts: list[str] = []
    if first == '"':
        whole = yield from _read_string(cursor, parts.append)
        text = "".join(parts)
        emit(_unpacked(text, whole))
        return whole
    whole = yield from _read_scalar(cursor, parts.append)
    emit("".join(parts))
    return whole and bool(parts)


def _unpacked(text: str, whole: bool) -> str:
    """The object within a string, or the beginning of one."""
    try:
        inner: str = json.loads(text if whole else text.rstrip("\\") + '"')
        is_object = isinstance(json.loads(inner), dict) if whole else inner.startswith("{")
    except ValueError:
        return text
    return inner if is_object else text


def _read_nested(cursor: Cursor, emit: Emit) -> Reading[bool]:
    depth = 0
    in_string = False
    while (yield from cursor.more()):
        pattern = _IN_STRING if in_string else _OUTSIDE
        match = pattern.search(cursor.text, cursor.pos)
        if match is None:
            emit(cursor.text[cursor.pos :])
            cursor.pos = len(cursor.text)
            continue
        emit(cursor.text[cursor.pos : match.end()])
        cursor.pos = match.end()
        char = match.group()
        if char == "\\":
            if not (yield from cursor.more()):
                return False
            emit(cursor.text[cursor.pos])
            cursor.pos += 1
        elif char == '"':
            in_string = not in_string
        else:
            depth += 1 if char in "{[" else -1
            if depth == 0:
                return True
    return False


def _read_string(cursor: Cursor, emit: Emit) -> Reading[bool]:
    """A string with its quotes."""
    emit(cursor.text[cursor.pos])
    cursor.pos += 1
    while (yield from cursor.more()):
        match = _IN_STRING.search(cursor.text, cursor.pos)
        end = match.end() if match else len(cursor.text)
        emit(cursor.text[cursor.pos : end])
        cursor.pos = end
        if match and match.group() == '"':
            return True
        if match:
            if not (yield from cursor.more()):
                return False
            emit(cursor.text[cursor.pos])
            cursor.pos += 1
    return False


def _read_scalar(cursor: Cursor, emit: Emit) -> Reading[bool]:
    while (yield from cursor.more()):
        match = _SCALAR_END.search(cursor.text, cursor.pos)
        end = match.start() if match else len(cursor.text)
        if end > cursor.pos:
            emit(cursor.text[cursor.pos : end])
        cursor.pos = end
        if match:
            return True
    return True


@dataclass(frozen=True, slots=True)
class JsonKeys:
    """Where a call in a JSON object has its parts."""

    name: str = "name"
    arguments: str = "arguments"
    id: str | None = None
    name_is_key: bool = False  # {"get_weather": {…}}
    exact: bool = False  # an object with other members is no call, nor is one without arguments


@dataclass(slots=True)
class _Call:
    """What is known of a call whose object is being read."""

    name: str | None = None
    id: str | None = None
    started: bool = False
    nested: bool = False  # the members are those of its "function"
    early: list[str] = field(default_factory=list)  # arguments that came before the name


Start = Callable[[str, str | None], Emit]


def read_json_call(
    cursor: Cursor, keys: JsonKeys, names: Collection[str], start: Start
) -> Reading[bool | None]:
    """A call in an object, its members in any order, others skipped.

    None where it is no call of one of ``names``; False where it is cut off.
    """
    call = _Call()
    whole = yield from _read_members(cursor, keys, names, start, call)
    if not call.started and call.name is not None and whole and (call.early or not keys.exact):
        emit = start(call.name, call.id)
        call.started = True
        emit("".join(call.early) or "{}")
    return whole if call.started else None


def _read_members(
    cursor: Cursor, keys: JsonKeys, names: Collection[str], start: Start, call: _Call
) -> Reading[bool]:
    if (yield from cursor.accept("{")) is None:
        return False
    while True:
        yield from cursor.skip_space()
        if (yield from cursor.peek()) != '"':
            return (yield from cursor.accept("}")) is not None
        key = yield from _read_text(cursor)
        if key is None or (yield from cursor.accept(":")) is None:
            return False
        if not (yield from _read_member(cursor, key, keys, names, start, call)):
            return False
        if (yield from cursor.accept(",")) is None:
            return (yield from cursor.accept("}")) is not None


def _read_member(
    cursor: Cursor, key: str, keys: JsonKeys, names: Collection[str], start: Start, call: _Call
) -> Reading[bool]:
    yield from cursor.skip_space()
    first = yield from cursor.peek()
    if keys.name_is_key:
        if key not in names or call.started:
            return False
        call.name = key
        return (yield from _read_arguments(cursor, start, call))
    if key == keys.name and first == '"':
        call.name = yield from _read_text(cursor)
        return call.name in names
    if key == keys.arguments or (key in ("arguments", "parameters") and not keys.exact):
        return (yield from _read_arguments(cursor, start, call))
    if keys.exact:
        return False
    if key in (keys.id, "id") and first == '"':
        call.id = yield from _read_text(cursor)
        return call.id is not None
    if key == "function" and first == "{" and not call.nested:
        call.nested = True
        return (yield from _read_members(cursor, keys, names, start, call))
    return (yield from read_json(cursor, lambda text: None))


def _read_arguments(cursor: Cursor, start: Start, call: _Call) -> Reading[bool]:
    if call.name is None:
        return (yield from read_json(cursor, call.early.append))
    call.started = True
    return (yield from read_json(cursor, start(call.name, call.id)))


def _read_text(cursor: Cursor) -> Reading[str | None]:
    parts: list[str] = []
    if not (yield from _read_string(cursor, parts.append)):
        return None
    try:
        text: str = json.loads("".join(parts))
    except ValueError:
        return None
    return text
