"""How a model marks its thoughts, read off its template by rendering probes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from openai_local.chat.traits import (
    ANSWER,
    NAME,
    THINKING,
    THOUGHT,
    USER,
    Message,
    Probe,
    call,
    thoughtful,
    tool,
    user,
)

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_ ]*\]")
_TOKEN = re.compile(rf"{_TAG.pattern}|\s+|\w+|.", re.DOTALL)
_KNOWN = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
_APRIEL = ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]")
_GRANITE = ("<response>", "</response>")
_OFF: dict[str, Any] = {"enable_thinking": False, "thinking": False}


class Thought(Enum):
    """Where a prompt leaves the model."""

    NONE = "none"  # it is not to think
    MAYBE = "maybe"  # it may begin a thought
    OPEN = "open"  # it is within one


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """``start`` thought ``end`` and the answer.

    Without a start the output begins as a thought; without an end there are no thoughts.
    """

    start: str
    end: str
    wrappers: tuple[str, ...] = ()  # marks around the answer, or behind it, no part of it

    @property
    def markers(self) -> Iterator[str]:
        """Every text of the format that may be, or have in it, a control token."""
        yield from (self.start, self.end, *self.wrappers)

    def state(self, prompt: str) -> Thought:
        """What the end of a rendered prompt says."""
        if not self.end:
            return Thought.NONE
        tail = prompt.rstrip()
        if tail.endswith(self.start):
            return Thought.OPEN
        return Thought.NONE if tail.endswith(self.end) else Thought.MAYBE


def reasoning_format(template: ChatTemplate) -> ReasoningFormat | None:
    """None where the template knows neither thoughts nor marks around an answer."""
    probe = Probe(template, template.traits.tools_must_be_listed)
    finders = (_from_answer, _from_prompt, _from_call, _from_history, _from_instructions)
    found = next((found for find in finders if (found := find(probe, template))), None)
    wrappers = _wrappers(probe, found)
    if found is None:
        return ReasoningFormat("", "", wrappers) if wrappers else None
    return ReasoningFormat(found.start, found.end, found.wrappers or wrappers)


def _prompt_tail(probe: Probe, **kwargs: Any) -> str:
    return probe.render([user()], add_generation_prompt=True, **kwargs).rpartition(USER)[2]


def _between(text: str, tail: str, content: str) -> ReasoningFormat | None:
    """The markers next to a thought in a rendered message; ``tail`` is the prompt's end."""
    before, found, after = text.rpartition(THOUGHT)
    tags = list(_TAG.finditer(before.rpartition(USER)[2])) if found else []
    end = _TAG.search(after.partition(content)[0] if content else after)
    if not tags or end is None:
        return None
    before = before.rpartition(USER)[2]
    start = _rest(before, tail).strip()
    if not _TAG.match(start):
        start = before[tags[-1].start() :].strip()
    if start in tail and end.group() not in tail and not tail.rstrip().endswith(start):
        start = ""  # of the prompt itself, which goes on behind it
    return ReasoningFormat(start, end.group())


def _rest(text: str, tail: str) -> str:
    """``text`` behind what it has in common with ``tail``."""
    tokens, others = _TOKEN.findall(text), _TOKEN.findall(tail)
    n = 0
    while n < min(len(tokens), len(others)) and tokens[n] == others[n]:
        n += 1
    return "".join(tokens[n:])


def _from_answer(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    for kwargs in THINKING:
        tail = _prompt_tail(probe, **kwargs)
        for message in thoughtful(ANSWER):
            found = _between(probe.render([user(), message], **kwargs), tail, ANSWER)
            if found is not None:
                return found
    return None


def _from_call(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    if not template.traits.tool_calls:
        return None
    calls = [call(NAME, {"qzkey": ANSWER}, "qzcallida")]
    for kwargs in THINKING:
        tail = _prompt_tail(probe, **kwargs)
        message: Message = {**next(iter(thoughtful(""))), "tool_calls": calls}
        text = probe.render([user(), message], [tool(NAME)], **kwargs)
        found = _between(text, tail, "")
        if found is not None:
            return found
    return None


def _from_prompt(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    """The prompt may open a thought, or open and close one where there is to be none."""
    for kwargs in (*THINKING, _OFF):
        tail = _prompt_tail(probe, **kwargs)
        for start, end in _KNOWN:
            if tail.rstrip().endswith(start) or re.search(
                rf"{re.escape(start)}\s*{re.escape(end)}", tail
            ):
                return ReasoningFormat(start, end)
    return None


def _from_history(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    """Templates that take thoughts out of earlier answers know what marks them."""
    for start, end in _KNOWN:
        said = f"{start}{THOUGHT}{end}{ANSWER}"
        answer = {"role": "assistant", "content": said}
        text = probe.render([user(), answer, user(), answer, user()])
        if ANSWER in text and text.count(THOUGHT) < 2:
            return ReasoningFormat(start, end)
    return None


def _from_instructions(probe: Probe, template: ChatTemplate) -> ReasoningFormat | None:
    """The system prompt may tell the model how to mark its thoughts."""
    for kwargs in THINKING:
        told = probe.render([user()], **kwargs).partition(USER)[0]
        if all(mark in told for mark in _APRIEL):
            return ReasoningFormat("", _APRIEL[0], _APRIEL[1:])
        for start, end in _KNOWN:
            if f"{start}{end}" in told:
                answer = _GRANITE if "".join(_GRANITE) in told else ()
                return ReasoningFormat(start, end, answer)
    return None


def _wrappers(probe: Probe, found: ReasoningFormat | None) -> tuple[str, ...]:
    """Marks around an answer that are not in the prompt, such as ``<|START_RESPONSE|>``."""
    text = probe.render([user(), {"role": "assistant", "content": ANSWER}]).rpartition(USER)[2]
    before, said, after = text.partition(ANSWER)
    lead = _rest(before, _prompt_tail(probe))
    if found is not None:
        lead = lead.replace(found.start, "") if found.start else lead
        lead = lead.replace(found.end, "")
    end = _TAG.match(after)
    if not said or not _TAG.fullmatch(lead.strip()) or end is None:
        return ()
    return (lead.strip(), end.group())


def reasoning_kwargs(effort: str, variables: Collection[str]) -> dict[str, Any]:
    """A template's own names, of ``variables``, for OpenAI's ``reasoning_effort``.

    Nothing where the template knows none of them.
    """
    thinks = effort != "none"
    known = {
        "enable_thinking": thinks,
        "thinking": thinks,
        "thinking_mode": "enabled" if thinks else "disabled",
        "reasoning_effort": _EFFORTS.get(effort, effort),
    }
    return {name: value for name, value in known.items() if name in variables}


# Templates know three; what is less or more than these is the least or the most.
_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
