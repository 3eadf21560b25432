"""Llama 3: a call is the whole answer, with no mark but now and then <|python_tag|>."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from openai_local.chat.tool_formats.derive import derive
from openai_local.chat.tool_formats.format import ToolFormat

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

PYTHON_TAG = "<|python_tag|>"


def find(template: ChatTemplate) -> ToolFormat | None:
    if "builtin_tools" not in template.variables:
        return None
    derived = derive(template)
    if derived is None or not derived.alone:
        return None
    return dataclasses.replace(derived, name="llama", prefixes=(PYTHON_TAG,))
