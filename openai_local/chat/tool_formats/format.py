"""A model's way to call tools: writes calls, binds them by a grammar, reads them back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openai_local.chat.reasoning import ReasoningFormat, Thought
from openai_local.chat.tool_formats.arguments import JsonArguments
from openai_local.chat.tool_formats.cursor import Cursor, Emit, Marker, Reading, Slot
from openai_local.chat.tool_formats.free_text import FreeText
from openai_local.chat.tool_formats.input_grammar import InputGrammar
from openai_local.chat.tool_formats.json_choice import call_or_answer, may_have_member
from openai_local.chat.tool_formats.json_reader import read_json_call
from openai_local.chat.tool_formats.lark import Lark
from openai_local.chat.tool_formats.layout import Call, CallLayout
from openai_local.chat.tool_formats.output import Tools
from openai_local.chat.tool_formats.schema import (
    InputUnsupported,
    SchemaUnsupported,
    name_of,
    parameters_of,
)

_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_]*\]")
_NAME = re.compile(r"[A-Za-z0-9_.-]")

_ALONE = r'\s*\{\s*"(name|type|function)"'

Start = Callable[[str, str | None], Emit]


@dataclass(frozen=True, slots=True)
class Bound:
    """What an output must be, as :meth:`ToolFormat.grammar` has it."""

    required: bool
    parallel: bool
    answer: Mapping[str, Any] | None
    reasoning: ReasoningFormat | None
    thought: Thought


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The calls of most models: a :class:`CallLayout` behind some text or none."""

    name: str
    layout: CallLayout
    prefixes: tuple[str, ...] = ()  # what may stand before the calls, such as <|python_tag|>
    end: str = ""  # the token that ends a turn, where it does not end the generation
    single: bool = False  # one call a message is all that the template renders
    answer: str = ""  # what is before an answer, where that is always marked

    @property
    def lead(self) -> Marker:
        """What is before the name of the first call."""
        return _joined((self.layout.open, *self.layout.call_open))

    @property
    def trigger(self) -> str:
        """The beginning of a call: from there on nothing else is meant."""
        first = next((piece for piece in self.lead if isinstance(piece, str)), "")
        tags = list(_TAG.finditer(first))
        if not tags or first[: tags[0].start()].strip():
            return self.layout.open.strip() or first.strip()
        # A mark that ends an answer, too, is no sign of a call yet.
        last = 1 if self.end.strip() and tags[0].group() == self.end.strip() else 0
        return first[: tags[last].end()].strip() if len(tags) > last else first.strip()

    @property
    def triggers(self) -> tuple[str, ...]:
        """Texts at which calls are looked for."""
        return (*self.prefixes, self.trigger)

    def call_marks(self, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """With what calls of ``names`` begin: anywhere, and where nothing is before them."""
        if not self.alone:
            return tuple(filter(None, self.triggers)), ()
        first = next((piece for piece in self.lead if isinstance(piece, str)), "")
        return self.prefixes, (first,)

    @property
    def alone(self) -> bool:
        """Whether calls have no mark of their own, and so are the whole answer."""
        return self.trigger.startswith("{")

    def is_call(self, text: str) -> bool:
        """Whether ``text`` begins as no answer may beside calls that are :attr:`alone`."""
        return re.match(_ALONE, text) is not None

    @property
    def markers(self) -> Iterator[str]:
        """Every text of the format that may be, or have in it, a control token."""
        yield from (*self.layout.markers, *self.prefixes, self.end)

    def write(self, calls: Sequence[Call], ids: Sequence[str] = ()) -> str:
        """``calls`` in the model's syntax."""
        return self.layout.write(calls, ids)

    def describe(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Tools for a system prompt, where the template has no place for them."""
        shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self.write([("name-of-the-function", {"name-of-an-argument": "its value"})])
        return (
            "# Tools\n\nYou may call functions to help with what the user asks. "
            f"These are their signatures:\n<tools>\n{shown}\n</tools>\n\n"
            f"To call a function, write its name and its arguments like this:\n{example}"
        )

    def grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        required: bool,
        parallel: bool,
        special: Mapping[str, int] | None = None,
        reasoning: ReasoningFormat | None = None,
        thought: Thought = Thought.NONE,
        answer: Mapping[str, Any] | None = None,
    ) -> str:
        """A Lark grammar of llguidance for what the model may write.

        A tool may have a grammar of its own, ``lark``, for its only argument, which is text. With
        ``required`` that is a call of one of ``tools``, or several if ``parallel`` and the
        model can; with ``answer`` such calls, or JSON of that schema; else any text, which at the
        beginning of a call becomes one. ``special`` maps the texts of tokens that the grammar's
        tokenizer holds as special to their ids.

        Raises SchemaUnsupported.
        """
        lark = Lark(special)
        bound = Bound(required, parallel and not self.single, answer, reasoning, thought)
        return lark.build(self.body(lark, tools, bound))

    def body(self, lark: Lark, tools: Sequence[Mapping[str, Any]], bound: Bound) -> str:
        """The expression of :meth:`grammar`, of which other syntaxes have their own."""
        trigger = "" if self.alone else self.trigger
        first = self._calls(lark, tools, bound.parallel, _without(self.lead, trigger))
        before = FreeText(lark, bound.reasoning, bound.thought)
        if self.alone:
            prefixes = lark.choice([*map(lark.literal, self.prefixes), '""'])
            first = f"{prefixes} {first}"

        def said(unlike: Sequence[str]) -> str:
            """Text, or calls behind it."""
            if self.alone:
                call = f"{_ALONE}(?s:.*)"
                marked = [begun for text in self.prefixes if (begun := lark.begins(text))]
                return f"( {first} | {before.text([*unlike, call, *marked])} )"
            section = lark.rule(f"{before.up_to(trigger, unlike)} {first}", "section")
            text = before.text(unlike)
            if not bound.parallel:
                return f"( {section} | {text} )"
            more = lark.rule(f"{before.up_to(trigger, ())} {first}", "section")
            return f"( {section} ( {more} )* {before.text(())} | {text} )"

        calls = f"{lark.literal(trigger)} {first}"
        if bound.required:
            body = before.then(calls)
        elif bound.answer is not None:
            body = before.then(self._or_answer(lark, tools, calls, bound.answer))
        else:
            body = before.or_then(said)
        end = f" ({lark.literal(self.end)})?" if lark.is_special(self.end) else ""
        return body + end

    def _or_answer(
        self, lark: Lark, tools: Sequence[Mapping[str, Any]], calls: str, answer: Mapping[str, Any]
    ) -> str:
        """``calls``, or JSON. Where both are JSON, one call and the answer are one schema: else
        the lexer would take the beginning of one for that of the other."""
        if not self.alone:
            return f"( {calls} | {lark.json(answer)} )"
        keys, written = self.layout.keys, self.layout.arguments
        assert keys is not None and isinstance(written, JsonArguments), "it can stand beside"
        for tool in tools:
            if "lark" in tool:
                raise InputUnsupported("an answer may be JSON, too", name_of(tool))
        either = lark.json(call_or_answer(tools, keys, answer), written.separators)
        if not self.prefixes:
            return either
        calls = self._calls(lark, tools, False, self.lead)
        return f"( {lark.choice(map(lark.literal, self.prefixes))} {calls} | {either} )"

    def refusal_beside(self, answer: Mapping[str, Any]) -> str | None:
        """Why calls cannot be told from an ``answer`` in JSON of that schema, if so."""
        if not self.alone:
            return None
        keys, written = self.layout.keys, self.layout.arguments
        if keys is not None and isinstance(written, JsonArguments) and not keys.name_is_key:
            call = json.dumps({keys.name: "f", keys.arguments: {}}, separators=written.separators)
            if call == self.write([("f", {})]):
                if not may_have_member(answer, keys.arguments, answer):
                    return None
                return f"which this format may be, too: it may have a member {keys.arguments!r}"
        return "of which none can be told from an answer"

    def beside_answer(self) -> ToolFormat:
        """As it is read where an answer may be an object, too."""
        keys = self.layout.keys
        if not self.alone or keys is None:
            return self
        return replace(self, layout=replace(self.layout, keys=replace(keys, exact=True)))

    def _calls(
        self, lark: Lark, tools: Sequence[Mapping[str, Any]], parallel: bool, first: Marker
    ) -> str:
        """Calls, the first of which lacks its beginning."""
        layout = self.layout
        arguments = {name_of(tool): arguments_rule(lark, layout, tool) for tool in tools}

        def calls(lead: Marker) -> str:
            return lark.rule(
                " | ".join(
                    f"{lark.literal(_joined((*lead, name, *layout.close_name)))} {rule} "
                    f"{lark.literal(layout.call_close)}"
                    for name, rule in arguments.items()
                ),
                "call",
            )

        body = calls(first)
        if parallel:
            more = calls(_joined((layout.separator, *layout.call_open)))
            body = f"{body} ( {more} )*"
        return lark.rule(f"{body} {lark.literal(layout.close)}".rstrip(), "calls")

    def read(self, cursor: Cursor, tools: Tools, start: Start) -> Reading[bool]:
        """Read calls at the cursor, which is at a trigger; False, in place, if there is none."""
        place = cursor.mark()
        for prefix in self.prefixes:
            if (yield from cursor.accept(prefix)) is not None:
                break
        if self.layout.open.strip() and (yield from cursor.accept(self.layout.open)) is None:
            cursor.back(place)
            return False
        n_calls = 0
        while True:
            between = cursor.mark()
            if n_calls:
                yield from cursor.accept(self.layout.separator)
            found = yield from self._read_call(cursor, tools, start)
            if found is None:
                cursor.back(between if n_calls else place)
                break
            n_calls += 1
            if not found:
                return True
        if n_calls and self.layout.close.strip():
            yield from cursor.accept(self.layout.close)
        return n_calls > 0

    def _read_call(self, cursor: Cursor, tools: Tools, start: Start) -> Reading[bool | None]:
        """None, in place, where there is no call; False where it is cut off."""
        layout = self.layout
        place = cursor.mark()
        if layout.keys is not None:
            if (yield from cursor.accept(layout.before_object)) is None:
                return None
            found = yield from read_json_call(cursor, layout.keys, tools, start)
            if found is None:
                cursor.back(place)
            elif found:
                yield from cursor.accept(layout.after_object)
            return found
        slots = yield from cursor.accept(layout.call_open)
        name = "" if slots is None else (yield from read_name(cursor))
        more = (yield from cursor.accept(layout.close_name)) if name in tools else None
        if slots is None or more is None:
            cursor.back(place)
            return None
        emit = start(name, {**slots, **more}.get(Slot.ID))
        if not (yield from layout.arguments.read(cursor, tools[name], emit)):
            return False
        yield from cursor.accept(layout.call_close)
        return True


def arguments_rule(lark: Lark, layout: CallLayout, tool: Mapping[str, Any]) -> str:
    """The rule of a tool's arguments. Raises SchemaUnsupported that names the tool."""
    try:
        return lark.rule(_arguments(lark, layout, tool), "arguments")
    except InputUnsupported as error:
        raise InputUnsupported(error.reason, name_of(tool)) from None
    except SchemaUnsupported as error:
        raise SchemaUnsupported(error.keyword, name_of(tool), error.reason) from None
    except RecursionError:
        reason = "it is nested too deeply"
        raise SchemaUnsupported("parameters", name_of(tool), reason) from None


def _arguments(lark: Lark, layout: CallLayout, tool: Mapping[str, Any]) -> str:
    parameters = parameters_of(tool)
    if "lark" not in tool:
        return layout.arguments.rule(lark, parameters)
    (key,) = parameters["properties"]
    return layout.arguments.input_rule(lark, key, InputGrammar(tool["lark"]))


def read_name(cursor: Cursor) -> Reading[str]:
    return (yield from cursor.word(_NAME))


def _joined(marker: Marker) -> Marker:
    joined: list[str | Slot] = []
    for piece in marker:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece:
            joined.append(piece)
    return tuple(joined)


def _without(marker: Marker, start: str) -> Marker:
    """``marker`` without its beginning."""
    if not start:
        return marker
    first = marker[0]
    assert isinstance(first, str) and start in first, "a trigger begins its marker"
    rest = first[first.index(start) + len(start) :]
    return (rest, *marker[1:]) if rest else marker[1:]
