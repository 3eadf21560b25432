"""DeepSeek R1: templates of its distilled models forget to close a single call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openai_local.chat.tool_formats.derive import render_call
from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.layout import CallLayout

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

FORMAT = ToolFormat(
    "deepseek",
    CallLayout(
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>",),
        ("\n```json\n",),
        ("\n```<｜tool▁call▁end｜>",),
        open="<｜tool▁calls▁begin｜>",
        separator="\n",
        close="<｜tool▁calls▁end｜>",
    ),
    end="<｜end▁of▁sentence｜>",
)


def find(template: ChatTemplate) -> ToolFormat | None:
    text = render_call(template)
    unclosed = FORMAT.layout.open in text and FORMAT.layout.close not in text
    return FORMAT if unclosed else None
