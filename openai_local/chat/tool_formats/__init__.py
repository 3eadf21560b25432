"""Models' ways to call tools: derived from the template, or of a family that has a file here.

A family's file has ``find(template)``, which gives its format where the template, rendered, shows
that it is of the family. A new one is a file and a line in ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from openai_local.chat.tool_formats import (
    deepseek,
    functionary,
    gemma,
    granite,
    harmony,
    hermes,
    lfm2,
    llama,
    minimax_m3,
)
from openai_local.chat.tool_formats.derive import derive
from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.schema import SchemaUnsupported

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

__all__ = ["FAMILIES", "SchemaUnsupported", "ToolFormat", "tool_format"]

FAMILIES: tuple[Callable[[ChatTemplate], ToolFormat | None], ...] = (
    harmony.find,
    gemma.find,
    minimax_m3.find,
    lfm2.find,
    functionary.find,
    deepseek.find,
    llama.find,
    granite.find,
)


def tool_format(template: ChatTemplate) -> ToolFormat | None:
    """How the template's model calls tools; Hermes' way where the template knows no calls.

    None where it has a way of its own that is not known here.
    """
    for find in (*FAMILIES, derive):
        found = find(template)
        if found is not None:
            return found
    return None if template.traits.tool_calls else hermes.FORMAT
