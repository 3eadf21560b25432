"""Where the pieces of an output go, for formats that have a say in all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from openai_local.chat.tool_formats.cursor import Cursor, Emit, Reading

Tools = Mapping[str, Mapping[str, Any]]  # name → schema of the arguments


class Output(Protocol):
    """Takes what was read."""

    def content(self, text: str) -> None: ...

    def thought(self, text: str) -> None: ...

    def start(self, name: str, call_id: str | None) -> Emit: ...


@runtime_checkable
class OutputFormat(Protocol):
    """A format whose content and thoughts are marked, too, and not the calls alone."""

    def read_output(
        self, cursor: Cursor, tools: Tools, output: Output, prompt: str
    ) -> Reading[None]:
        """Read to the end, whatever stands there. ``prompt`` is what was before."""
        ...
