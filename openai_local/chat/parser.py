"""Takes an assistant's output apart as it arrives: content, thoughts, tool calls. Pure text.

The pieces do not depend on how the text was cut. What is no call after all stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from openai_local.chat.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)
from openai_local.chat.reasoning import ReasoningFormat, Thought
from openai_local.chat.tool_formats.cursor import Cursor, Emit, Reading
from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.output import OutputFormat
from openai_local.chat.tool_formats.schema import name_of, parameters_of

__all__ = [
    "ChatParser",
    "ContentDelta",
    "Delta",
    "ReasoningDelta",
    "ToolCallArguments",
    "ToolCallStart",
    "visible_tokens",
]


def visible_tokens(
    formats: Iterable[ToolFormat | ReasoningFormat | None], control_tokens: Iterable[str]
) -> frozenset[str]:
    """Those of ``control_tokens`` that a parser of ``formats`` must see in the text."""
    markers = [text for found in formats if found is not None for text in found.markers]
    return frozenset(
        token for token in control_tokens if token and any(token in text for text in markers)
    )


class ChatParser:
    """One output. Not for several threads."""

    def __init__(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_format: ToolFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        prompt: str = "",
    ) -> None:
        """``tools`` are those that may be called; without any, no calls are looked for.

        ``prompt`` is the rendered prompt: it may leave the model within a thought.
        """
        self._tools = {name_of(tool): parameters_of(tool) for tool in tools}
        self._format = tool_format
        self._reasoning = reasoning
        self._prompt = prompt
        self._cursor = Cursor()
        self._out = _Collector(self._cursor)
        whole = tool_format if isinstance(tool_format, OutputFormat) else None
        plain = whole is None and reasoning is None and not (self._tools and tool_format)
        self._reading = None if plain else self._read(whole)
        if self._reading is not None:
            next(self._reading, None)

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends within a thought."""
        return self._out.in_thought

    @property
    def n_reasoning_chars(self) -> int:
        """Characters of thoughts so far."""
        return self._out.n_thought_chars

    @property
    def n_calls(self) -> int:
        """Calls begun so far."""
        return self._out.n_calls

    def feed(self, text: str) -> list[Delta]:
        """The pieces that are now certain."""
        if self._reading is None:
            return [ContentDelta(text)] if text else []
        if text:
            self._cursor.feed(text)
            next(self._reading, None)
        return self._out.take()

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """What was held back, at the end of the output; one that was ``cut`` off may end within a
        mark, which is no text."""
        if self._reading is None:
            return []
        self._cursor.closed, self._cursor.cut = True, cut
        for _ in self._reading:
            pass
        return self._out.take()

    def _read(self, whole: OutputFormat | None) -> Reading[None]:
        if whole is not None:
            yield from whole.read_output(self._cursor, self._tools, self._out, self._prompt)
            return
        reasoning = self._reasoning
        thought = False
        if reasoning is not None and reasoning.end:
            thought = yield from self._read_beginning(reasoning)
        closer = yield from self._read_wrapper(thought)
        yield from self._read_answer(closer)

    def _read_beginning(self, reasoning: ReasoningFormat) -> Reading[bool]:
        """A thought, where there is one before anything else; whether there was one."""
        cursor, out = self._cursor, self._out
        state = reasoning.state(self._prompt)
        if state is Thought.OPEN:
            out.begin_thought()
            # Some models open the thought once more.
            if reasoning.start:
                yield from cursor.accept(reasoning.start)
            yield from self._read_thought(reasoning)
            return True
        if (yield from cursor.accept(reasoning.start)) is not None:
            yield from self._read_thought(reasoning)
            return True
        # A bare end is how some say that they do not think.
        bare = (yield from cursor.accept(reasoning.end)) is not None
        out.begin_content(lead=bare)
        return False

    def _read_wrapper(self, thought: bool) -> Reading[str | None]:
        """The mark before an answer, if it is there; the one that closes the answer then."""
        wrappers = self._reasoning.wrappers if self._reasoning is not None else ()
        if len(wrappers) == 1 and thought:
            return wrappers[0]
        if len(wrappers) == 2 and (yield from self._cursor.accept(wrappers[0])) is not None:
            self._out.begin_content(lead=True)
            return wrappers[1]
        return None

    def _read_thought(self, reasoning: ReasoningFormat) -> Reading[None]:
        cursor, out = self._cursor, self._out
        out.begin_thought()
        # A thought without a mark of its own ends at a call, too.
        triggers = () if reasoning.start else self._triggers()
        found = yield from cursor.until([reasoning.end, *triggers], out.thought)
        out.begin_content(lead=True)
        if found is not None and found != reasoning.end:
            cursor.pos -= len(found)

    def _triggers(self) -> tuple[str, ...]:
        return self._format.triggers if self._format is not None and self._tools else ()

    def _read_answer(self, closer: str | None) -> Reading[None]:
        cursor, out = self._cursor, self._out
        triggers = self._triggers()
        out.trims = bool(triggers)
        if self._format is not None and triggers and self._format.alone:
            yield from self._read_alone(self._format)
            triggers = self._format.prefixes
        while True:
            stops = (*triggers, closer) if closer else triggers
            if not stops:
                yield from self._read_rest()
                return
            found = yield from cursor.until(stops, out.content)
            if found is None:
                if not cursor.cut or not cursor.starved:  # else space before a mark
                    out.end_content()
                return
            if found == closer:
                closer = None
                continue
            cursor.pos -= len(found)
            assert self._format is not None, "its trigger was found"
            cursor.starved = False
            called = yield from self._format.read(cursor, self._tools, out.start)
            if cursor.cut and cursor.starved:
                out.begin_content(lead=True)
                cursor.drop_rest()
            elif called:
                yield from self._read_between()
            else:
                out.content(found)
                cursor.pos += len(found)

    def _read_alone(self, format: ToolFormat) -> Reading[None]:
        place = self._cursor.mark()
        self._cursor.starved = False
        yield from self._cursor.skip_space()
        if (yield from format.read(self._cursor, self._tools, self._out.start)):
            yield from self._read_between()
            return
        self._cursor.back(place)
        if self._cursor.cut and self._cursor.starved and format.is_call(self._cursor.rest):
            self._cursor.drop_rest()

    def _read_between(self) -> Reading[None]:
        """Space behind a call, and a thought between calls."""
        cursor, out, reasoning = self._cursor, self._out, self._reasoning
        out.begin_content(lead=True)
        if reasoning is None or not (reasoning.start and reasoning.end):
            return
        if (yield from cursor.accept(reasoning.start)) is not None:
            yield from self._read_thought(reasoning)

    def _read_rest(self) -> Reading[None]:
        """Text that nothing can end."""
        cursor, out = self._cursor, self._out
        while (yield from cursor.more()):
            out.content(cursor.text[cursor.pos :])
            cursor.pos = len(cursor.text)
        out.end_content()


class _Collector:
    """Puts pieces of one kind together, and leaves out the space around them.

    Templates put space around thoughts and calls of their own: it would come twice.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._deltas: list[Delta] = []
        self._space = ""  # at the end of the text so far
        self._leading = False
        self.trims = False
        self.in_thought = False
        self.n_thought_chars = 0
        self.n_calls = 0

    def take(self) -> list[Delta]:
        deltas = self._deltas
        self._deltas = []
        return deltas

    def content(self, text: str) -> None:
        self._cursor.settle()
        self.in_thought = False
        text = self._trimmed(text, self.trims)
        if text:
            self._add(ContentDelta(text))

    def thought(self, text: str) -> None:
        self._cursor.settle()
        self.in_thought = True
        text = self._trimmed(text, True)
        if text:
            self.n_thought_chars += len(text)
            self._add(ReasoningDelta(text))

    def begin_thought(self) -> None:
        self._space, self._leading, self.in_thought = "", True, True

    def begin_content(self, *, lead: bool) -> None:
        """With ``lead``, space before the content is left out."""
        self._space, self._leading, self.in_thought = "", lead, False

    def end_content(self) -> None:
        """Space at the end of everything is the model's own."""
        if self._space and not self._leading and not self.in_thought:
            self._add(ContentDelta(self._space))
        self._space = ""

    def start(self, name: str, call_id: str | None) -> Emit:
        index = self.n_calls
        self.n_calls += 1
        self.in_thought = False
        self._deltas.append(ToolCallStart(index, name, call_id))

        def emit(text: str) -> None:
            self._cursor.settle()
            if text:
                self._add(ToolCallArguments(index, text))

        return emit

    def _trimmed(self, text: str, trims: bool) -> str:
        if self._leading:
            text = text.lstrip()
            self._leading = not text
        if not trims:
            return text
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return kept

    def _add(self, delta: ContentDelta | ReasoningDelta | ToolCallArguments) -> None:
        last = self._deltas[-1] if self._deltas else None
        if type(last) is type(delta) and getattr(last, "index", 0) == getattr(delta, "index", 0):
            self._deltas[-1] = replace(delta, text=last.text + delta.text)
        else:
            self._deltas.append(delta)
