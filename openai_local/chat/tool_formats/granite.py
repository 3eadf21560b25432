"""Granite 3: its template tells the model of <|tool_call|>, but does not render calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.json_reader import JsonKeys
from openai_local.chat.tool_formats.layout import CallLayout
from openai_local.chat.traits import NAME, Probe, tool, user

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

FORMAT = ToolFormat(
    "granite",
    CallLayout(
        ('{"name": "',),
        ('", "arguments": ',),
        ("}",),
        open="<|tool_call|>[",
        separator=", ",
        close="]",
        keys=JsonKeys(),
    ),
)


def find(template: ChatTemplate) -> ToolFormat | None:
    if template.traits.tool_calls or not template.traits.tools:
        return None
    told = Probe(template).render([user()], [tool(NAME)])
    return FORMAT if "<|tool_call|>" in told else None
