"""Where a call's parts stand between a model's markers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai_local.chat.tool_formats.arguments import Arguments, JsonArguments
from openai_local.chat.tool_formats.cursor import Marker, Slot
from openai_local.chat.tool_formats.json_reader import JsonKeys

Call = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CallLayout:
    """``open (call_open NAME close_name ARGUMENTS call_close){separator} close``

    With ``keys``, a call is one JSON object: ``call_open``, ``close_name`` and ``call_close``
    have its punctuation in them.
    """

    call_open: Marker
    close_name: Marker
    call_close: Marker
    open: str = ""
    separator: str = ""
    close: str = ""
    arguments: Arguments = field(default_factory=JsonArguments)
    keys: JsonKeys | None = None

    @property
    def markers(self) -> Iterator[str]:
        yield from (self.open, self.separator, self.close)
        for marker in (self.call_open, self.close_name, self.call_close):
            yield "".join(piece for piece in marker if isinstance(piece, str))
        yield from self.arguments.markers

    def write(self, calls: Sequence[Call], ids: Sequence[str] = ()) -> str:
        """The text of ``calls`` as the model writes it."""
        texts = []
        for i, (name, arguments) in enumerate(calls):
            slots = {Slot.INDEX: str(i), Slot.ID: ids[i] if ids else f"call{i:05d}"}
            parts = [*self.call_open, name, *self.close_name, self.arguments.write(arguments),
                     *self.call_close]  # fmt: skip
            texts.append("".join(slots[p] if isinstance(p, Slot) else p for p in parts))
        return f"{self.open}{self.separator.join(texts)}{self.close}"

    @property
    def before_object(self) -> Marker:
        """Of ``call_open`` what is before a call's JSON object."""
        head: list[str | Slot] = []
        for piece in self.call_open:
            if isinstance(piece, str) and "{" in piece:
                head.append(piece[: piece.index("{")])
                break
            head.append(piece)
        return tuple(piece for piece in head if piece)

    @property
    def after_object(self) -> Marker:
        """Of ``call_close`` what is behind a call's JSON object."""
        opened = "".join(p for p in self.call_open + self.close_name if isinstance(p, str))
        depth = opened.count("{") - opened.count("}")
        rest: list[str | Slot] = []
        for piece in self.call_close:
            if isinstance(piece, str):
                while depth and "}" in piece:
                    piece = piece[piece.index("}") + 1 :]
                    depth -= 1
            if not depth and piece:
                rest.append(piece)
        return tuple(rest)
