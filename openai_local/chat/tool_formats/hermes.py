"""Hermes' calls, which most models have seen: JSON in <tool_call> tags. For templates with none."""

from __future__ import annotations

from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.json_reader import JsonKeys
from openai_local.chat.tool_formats.layout import CallLayout

FORMAT = ToolFormat(
    "hermes",
    CallLayout(
        ('<tool_call>\n{"name": "',),
        ('", "arguments": ',),
        ("}\n</tool_call>",),
        separator="\n",
        keys=JsonKeys(),
    ),
)
