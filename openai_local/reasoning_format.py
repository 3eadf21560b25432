"""How a model marks its thoughts, read off its template by rendering probes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from openai_local.template_traits import (
    ANSWER,
    NAME,
    THINKING,
    THOUGHT,
    USER,
    Message,
    Probe,
    call,
    tool,
    user,
)

if TYPE_CHECKING:
    from openai_local.chat_template import ChatTemplate

_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_ ]*\]")
_PAIR = re.compile(r"(<[^<>/\s][^<>\s]*>|\[[A-Z][A-Z_ ]*\])\s*(</[^<>\s]+>|\[/[A-Z][A-Z_ ]*\])")
_KNOWN = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))


class Thought(Enum):
    """Where a prompt leaves the model."""

    NONE = "none"  # it does not think now
    MAYBE = "maybe"  # it may begin a thought
    OPEN = "open"  # it is within one


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """``start`` thought ``end``; without a start the output begins as a thought."""

    start: str
    end: str
    content_end: str = ""  # what closes the answer behind such a thought, if anything does

    def state(self, prompt: str) -> Thought:
        """What the end of a rendered prompt says."""
        tail = prompt.rstrip()
        if not self.start:
            return Thought.OPEN
        if tail.endswith(self.start):
            return Thought.OPEN
        return Thought.NONE if tail.endswith(self.end) else Thought.MAYBE


def reasoning_format(template: ChatTemplate) -> ReasoningFormat | None:
    """None where the template knows no thoughts."""
    probe = Probe(template, template.traits.tools_must_be_listed)
    for find in (_from_final_answer, _from_final_prompt, _from_call, _from_history):
        found = find(probe, template)
        if found is not None:
            return found
    return None


def _between(text: str, content: str) -> ReasoningFormat | None:
    """The markers next to a thought in a rendered message."""
    before, found, after = text.rpartition(THOUGHT)
    if not found:
        return None
    before = before.rpartition(USER)[2]
    tags = list(_TAG.finditer(before))
    if not tags:
        return None
    start = before[tags[-1].start() :].strip()
    end = _TAG.search(after.partition(content)[0] if content else after)
    return ReasoningFormat(start, end.group()) if end else None


def _thoughtful(content: str) -> Message:
    return {
        "role": "assistant",
        "content": content,
        "reasoning_content": THOUGHT,
        "thinking": THOUGHT,
    }


def _from_final_answer(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    for kwargs in THINKING:
        found = _between(probe.render([user(), _thoughtful(ANSWER)], **kwargs), ANSWER)
        if found is not None:
            return found
    return None


def _from_call(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    if not template.traits.tool_calls:
        return None
    arguments = {"qzkey": ANSWER}
    for kwargs in THINKING:
        message = {**_thoughtful(""), "tool_calls": [call(NAME, arguments, "qzcallida")]}
        found = _between(probe.render([user(), message], [tool(NAME)], **kwargs), "")
        if found is not None:
            return found
    return None


def _from_final_prompt(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    """The prompt may open a thought, or open and close one where there is to be none."""
    off = [{name: False for name in kwargs} for kwargs in THINKING[1:2]]
    for kwargs in (*THINKING, *off):
        text = probe.render([user()], add_generation_prompt=True, **kwargs).rpartition(USER)[2]
        pair = _PAIR.search(text)
        if pair and pair[2].strip("</[]>") == pair[1].strip("<[]>"):
            return ReasoningFormat(pair[1], pair[2])
        for start, end in _KNOWN:
            if text.rstrip().endswith(start):
                return ReasoningFormat(start, end)
    return None


def _from_history(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    """Templates that take thoughts out of earlier answers know what marks them."""
    for start, end in _KNOWN:
        said = f"{start}{THOUGHT}{end}{ANSWER}"
        text = probe.render([user(), {"role": "assistant", "content": said}, user()])
        if ANSWER in text and THOUGHT not in text:
            return ReasoningFormat(start, end)
    return None
