"""What a grammar leaves free around calls: thoughts, and text in the model's marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openai_local.chat.reasoning import ReasoningFormat, Thought
from openai_local.chat.tool_formats.lark import Lark


class FreeText:
    """Text and thoughts, as rules of one grammar.

    llguidance's lexer does not go back: a text that may be anything swallows what would be a mark.
    So a text at the beginning is one that does not begin as a thought.
    """

    def __init__(self, lark: Lark, reasoning: ReasoningFormat | None, thought: Thought) -> None:
        self._lark = lark
        self._marks = reasoning.wrappers if reasoning is not None else ()
        self._thoughts: list[str] = []
        self._open = thought is Thought.OPEN
        self._unlike: list[str] = []
        if reasoning is None or not reasoning.end or thought is Thought.NONE:
            return
        rest = lark.closed_text(lark.text(), reasoning.end)
        if self._open:
            self._thoughts = [rest]
            return
        # A bare end is how some say that they do not think.
        self._thoughts = [f"{lark.literal(reasoning.start)} {rest}", lark.literal(reasoning.end)]
        marks = (reasoning.start, reasoning.end)
        self._unlike = [begun for mark in marks if (begun := lark.begins(mark))]

    def then(self, body: str) -> str:
        """``body`` behind a thought, where there may be or must be one."""
        if not self._thoughts:
            return body
        space = self._lark.regex(r"[ \n]{0,8}", "SPACE")
        thought = f"{self._lark.choice(self._thoughts)} {space}"
        return f"{thought} {body}" if self._open else f"( {thought} )? {body}"

    def or_then(self, body: Callable[[Sequence[str]], str]) -> str:
        """As :meth:`then`; ``body`` is told what its text must be unlike."""
        if not self._thoughts:
            return body(())
        behind = f"{self._lark.choice(self._thoughts)} {body(())}"
        return behind if self._open else f"( {behind} | {body(self._unlike)} )"

    def text(self, unlike: Sequence[str]) -> str:
        """An answer, in its marks where they are tokens."""
        lark = self._lark
        marks = [f"( {lark.literal(m)} )?" if lark.is_special(m) else "" for m in self._marks]
        before, after = ([""] * (2 - len(marks)) + marks)[:2]
        return f"{before} {lark.text(unlike=unlike)} {after}".strip()

    def up_to(self, trigger: str, unlike: Sequence[str]) -> str:
        """An answer up to the beginning of a call."""
        lark = self._lark
        plain = lark.text(unlike=unlike)
        options = [lark.up_to(plain, trigger)]
        marked = self.text(unlike)
        if marked != plain:
            options.append(f"{marked} {lark.literal(trigger)}")
        return lark.choice(options)
