"""Messages to a prompt, with the model's own Jinja template. Knows no tokens and no HTTP.

Messages come in OpenAI's shape and are put into the one that the template can render
(``traits.py``, ``messages.py``). What users wrote must not become control
tokens: where a control token's text is in a message, it comes out as a segment of plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import SequenceMatcher
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from openai_local.chat.messages import adapt_messages, adapt_tools
from openai_local.chat.sandbox import CompiledTemplate, TemplateError
from openai_local.chat.traits import TemplateTraits, probe_traits

if TYPE_CHECKING:
    from openai_local.chat.reasoning import ReasoningFormat
    from openai_local.chat.tool_formats import ToolFormat

__all__ = ["ChatTemplate", "RenderedPrompt", "Segment", "TemplateError"]

# Private-use characters: they mean nothing in any template.
_MARK, _END = "\uf8f0", "\uf8f1"
_MAX_PAIRS = 1 << 18
_RESERVED = str.maketrans({_MARK: "\ufffd", _END: "\ufffd"})


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the prompt; in ``trusted`` ones special tokens are meant."""

    text: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as text, in order."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


class ChatTemplate:
    """A compiled template and what it knows. Free to every thread."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Sequence[str] = (),
    ) -> None:
        """Raises TemplateError if it does not compile."""
        self.source = source
        self._compiled = CompiledTemplate(source)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # The longest first, so that no token hides behind its own beginning.
        texts = sorted({t for t in control_tokens if t}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and does not set, such as ``enable_thinking``."""
        return self._compiled.variables

    @cached_property
    def traits(self) -> TemplateTraits:
        """What the template knows, found by rendering probes."""
        return probe_traits(self)

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None where that is not known."""
        from openai_local.chat.tool_formats import tool_format

        return tool_format(self)

    @cached_property
    def reasoning_format(self) -> ReasoningFormat | None:
        """How the model writes its thoughts, if it has any."""
        from openai_local.chat.reasoning import reasoning_format

        return reasoning_format(self)

    def knows(self, word: str) -> bool:
        """Whether the template speaks of ``word``, a role or a message field."""
        if word == "developer":
            return self.traits.developer_role
        return word in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """The prompt of ``messages``, which are in OpenAI's shape.

        With ``continue_final_message`` the prompt ends where the last message's text ends.
        ``kwargs`` are more variables for the template. Raises TemplateError.
        """
        try:
            messages, tools, kwargs = (_map_text(v, _clean) for v in (messages, tools, kwargs))
        except RecursionError:
            raise TemplateError("the messages are nested too deeply") from None
        adapted = self.adapt(messages, tools)
        if continue_final_message:
            adapted = [*adapted[:-1], *map(_with_end, adapted[-1:])]
            add_generation_prompt = False
        shown = self.adapt_tools(tools)
        context = self.context(adapted, shown, add_generation_prompt, kwargs)
        segments = self._segments(context)
        return RenderedPrompt(tuple(_until_end(segments) if continue_final_message else segments))

    def render_exactly(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The messages through the template as they are. Raises TemplateError."""
        return self._compiled.render(self.context(messages, tools, add_generation_prompt, kwargs))

    def adapt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[dict[str, Any]]:
        """``messages`` in the shape that the template renders in full. Raises TemplateError."""
        traits = self.traits
        spoken = any("tool_calls" in message for message in messages)
        if (spoken and not traits.tool_calls) or (tools and not traits.tools):
            if self.tool_format is None:
                raise TemplateError("the chat template has calls of tools in an unknown syntax")
            described = () if traits.tools else tools or ()
            return adapt_messages(messages, traits, self.tool_format, described)
        return adapt_messages(messages, traits)

    def adapt_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        """``tools`` as the template is given them."""
        if tools and self.traits.tools:
            return adapt_tools(tools, self.traits)
        return [] if self.traits.tools_must_be_listed else None

    def context(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """The template's variables."""
        context: dict[str, Any] = {"documents": None}
        if "functions" in self.variables:  # Fireworks' name for the tools, as text
            functions = [tool.get("function", tool) for tool in tools or ()]
            context["functions"] = json.dumps(functions, indent=4, ensure_ascii=False)
        if "datetime" in self.variables:
            context["datetime"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        context.update(kwargs or {})
        context.update(
            self._tokens,
            messages=list(messages),
            tools=None if tools is None else list(tools),
            add_generation_prompt=add_generation_prompt,
        )
        return context

    def _segments(self, context: Mapping[str, Any]) -> list[Segment]:
        text = self._compiled.render(context)
        control = self._control
        given = {key: value for key, value in context.items() if key not in self._tokens}
        if control is None or not _any_text(given, control):
            return [Segment(text, True)] if text else []
        # What a template does with a text (`in`, `split`, `startswith`) must not change by the
        # marks: a mark before each token, or else behind it, that leaves the prompt as it is.
        pieces: list[Segment] = []
        for form in (f"{_MARK}\\g<0>", f"\\g<0>{_MARK}"):
            marks = _map_text(given, partial(control.sub, form))
            marked = self._compiled.render({**context, **marks})
            pieces = list(_marked_pieces(marked, control, before=form[0] == _MARK))
            if "".join(piece.text for piece in pieces) == text:
                return _merged(pieces)
        return _merged(_aligned(pieces, text, control))


def _with_end(message: Mapping[str, Any]) -> dict[str, Any]:
    """``message`` with a mark where its text ends."""
    content, thought = message.get("content"), message.get("reasoning_content")
    if isinstance(content, list) and content:
        last = {**content[-1], "text": content[-1].get("text", "") + _END}
        return {**message, "content": [*content[:-1], last]}
    if thought and not content:
        return {**message, "reasoning_content": thought + _END, "thinking": thought + _END}
    return {**message, "content": (content or "") + _END}


def _until_end(segments: Sequence[Segment]) -> Iterator[Segment]:
    """The segments before the mark that `_with_end` has set."""
    last = max((i for i, segment in enumerate(segments) if _END in segment.text), default=-1)
    if last < 0:
        raise TemplateError("the chat template cannot continue a final message")
    yield from segments[:last]
    text = segments[last].text[: segments[last].text.rindex(_END)]
    if text:
        yield Segment(text, segments[last].trusted)


def _clean(text: str) -> str:
    return text.translate(_RESERVED)


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of ``value`` with every text in it, keys included, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_text(key, change): _map_text(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_text(item, change) for item in value]
    return value


def _any_text(value: Any, pattern: re.Pattern[str]) -> bool:
    if isinstance(value, str):
        return pattern.search(value) is not None
    if isinstance(value, Mapping):
        return any(_any_text(k, pattern) or _any_text(v, pattern) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return any(_any_text(item, pattern) for item in value)
    return False


def _marked_pieces(text: str, control: re.Pattern[str], *, before: bool) -> Iterator[Segment]:
    """Marked tokens, and what is between them without marks."""
    mark = f"(?:{_MARK}|\\\\uf8f0)"  # as JSON in ASCII, too
    token = f"(?P<token>{control.pattern})"
    pattern = re.compile(f"{mark}{token}|{mark}" if before else f"{token}{mark}|{mark}")
    at = 0
    for match in pattern.finditer(text):
        yield Segment(text[at : match.start()], True)
        if match["token"] is not None:
            yield Segment(match["token"], False)
        at = match.end()
    yield Segment(text[at:], True)


def _aligned(pieces: Sequence[Segment], text: str, control: re.Pattern[str]) -> Iterator[Segment]:
    """``text`` with what is known of a similar one; a token of unknown origin is not trusted."""
    known = [
        Segment(part, piece.trusted)
        for piece in pieces
        for part in (_parts(piece.text, control) if piece.trusted else [piece.text])
    ]
    parts = _parts(text, control)
    is_token = [control.fullmatch(part) is not None for part in parts]
    trusted = [not token for token in is_token]
    for a, b in _pairs([segment.text for segment in known], parts, is_token):
        trusted[b] = known[a].trusted
    yield from map(Segment, parts, trusted)


def _pairs(
    known: Sequence[str], parts: Sequence[str], is_token: Sequence[bool]
) -> Iterator[tuple[int, int]]:
    """Which parts are the same: equal tokens, or any texts at one place between such."""
    if len(known) * len(parts) > _MAX_PAIRS:
        for a, b, size in SequenceMatcher(None, known, parts, autojunk=False).get_matching_blocks():
            yield from zip(range(a, a + size), range(b, b + size), strict=True)
        return
    tokens = {part for part, token in zip(parts, is_token, strict=True) if token}
    scores = [[0] * (len(parts) + 1) for _ in range(len(known) + 1)]
    for a in range(len(known) - 1, -1, -1):
        for b in range(len(parts) - 1, -1, -1):
            equal = known[a] == parts[b]
            same = scores[a + 1][b + 1] + (4 if equal else 1)
            skip = max(scores[a + 1][b], scores[a][b + 1])
            pairs = equal or not (is_token[b] or known[a] in tokens)
            scores[a][b] = max(same, skip) if pairs else skip
    a = b = 0
    while a < len(known) and b < len(parts):
        if scores[a][b] == scores[a + 1][b]:
            a += 1
        elif scores[a][b] == scores[a][b + 1]:
            b += 1
        else:
            yield a, b
            a, b = a + 1, b + 1


def _parts(text: str, control: re.Pattern[str]) -> list[str]:
    parts = re.split(f"({control.pattern})", text)
    return [part for part in parts if part]


def _merged(pieces: Iterable[Segment]) -> list[Segment]:
    """Neighbours of one kind as one segment, no empty ones."""
    merged: list[Segment] = []
    for piece in pieces:
        if merged and merged[-1].trusted == piece.trusted:
            merged[-1] = Segment(merged[-1].text + piece.text, piece.trusted)
        elif piece.text:
            merged.append(piece)
    return merged
