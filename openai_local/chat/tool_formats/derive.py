"""Reads a model's tool syntax off its template: renders calls, and looks at what is around them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai_local.chat.sandbox import TemplateError, TemplateTooSlow
from openai_local.chat.tool_formats.arguments import Arguments, JsonArguments, TaggedArguments
from openai_local.chat.tool_formats.cursor import Marker, Slot
from openai_local.chat.tool_formats.format import ToolFormat
from openai_local.chat.tool_formats.json_reader import JsonKeys
from openai_local.chat.tool_formats.layout import Call, CallLayout
from openai_local.chat.traits import ANSWER, KEY, NAME, USER, VALUE, call, tool, user

if TYPE_CHECKING:
    from openai_local.chat.template import ChatTemplate

_TOKEN = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|\s|\w+|.", re.DOTALL)
_NAMES = ("qzalpha", "qzbeta", "qzgamma")
_IDS = ("qzcallid1", "qzcallid2", "qzcallid3")
_KEY, _OTHER_KEY = "qzfirstkey", "qzotherkey"
_TEXT, _NUMBER = "qzsometext", 73910

Token = str | Slot


@dataclass(frozen=True, slots=True)
class _Sample:
    """A rendered message of calls, without what a message always has around it."""

    text: str
    end: str


def derive(template: ChatTemplate) -> ToolFormat | None:
    """The template's own format; None where it has none, or one that is not of this kind."""
    if not template.traits.tool_calls:
        return None
    calls = [(name, {_KEY: f"{_TEXT}{i}", _OTHER_KEY: _NUMBER + i})
             for i, name in enumerate(_NAMES)]  # fmt: skip
    one = _render(template, calls[:1])
    several = _render(template, calls[:2]) if template.traits.parallel_tool_calls else None
    if one is None or (several is None and template.traits.parallel_tool_calls):
        return None
    two = several.text if several else None
    layout = _json_layout(one.text, two, calls) or _tagged_layout(template, one.text, two, calls)
    if layout is None or not all(
        _writes(template, layout, checked)
        for checked in (
            calls[:1],
            calls[: 2 if several else 1],
            [(_NAMES[2], {"qzthirdkey": "qz text"})],
        )
    ):
        return None
    return ToolFormat("derived", layout, end=one.end, single=several is None)


def _writes(template: ChatTemplate, layout: CallLayout, calls: Sequence[Call]) -> bool:
    """Whether the layout writes calls as the template does."""
    sample = _render(template, calls)
    written = layout.write(calls, _IDS)
    if sample is None:
        return False
    if isinstance(layout.arguments, JsonArguments):  # some indent it
        return "".join(sample.text.split()) == "".join(written.split())
    return sample.text == written.strip()


def render_call(template: ChatTemplate) -> str:
    """A message with one call, of the probes' NAME, as the template has it."""
    if not template.traits.tool_calls:
        return ""
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call(NAME, {KEY: VALUE}, _IDS[0])],
    }
    try:
        text = template.render_exactly(
            template.adapt([user(), message], None), tools=template.adapt_tools([tool(NAME)])
        )
    except TemplateTooSlow:
        raise
    except TemplateError:
        return ""
    return text.rpartition(USER)[2]


def _render(template: ChatTemplate, calls: Sequence[Call]) -> _Sample | None:
    tools = [tool(name, True, _KEY, _OTHER_KEY) for name in _NAMES]
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": _IDS[i], "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ],
    }
    try:
        messages = template.adapt([user(), message], None)
        with_calls = template.render_exactly(messages, tools=template.adapt_tools(tools))
        plain = template.adapt([user(), {"role": "assistant", "content": ANSWER}], None)
        without = template.render_exactly(plain, tools=template.adapt_tools(tools))
    except TemplateTooSlow:
        raise
    except TemplateError:
        return None
    said = _tokens(with_calls.rpartition(USER)[2])
    plainly = _tokens(without.rpartition(USER)[2])
    n_head = _common(said, plainly)
    # Some put more line breaks before the end of a turn behind a call, some fewer.
    body, end = "".join(map(str, said[n_head:])).rstrip(), ""
    for token in filter(str.strip, map(str, plainly[: n_head - 1 : -1])):
        if not body.endswith(token):
            break
        body, end = body[: -len(token)].rstrip(), token
    reasoning = template.reasoning_format
    if reasoning is not None and reasoning.start:
        thought = f"({re.escape(reasoning.start)})?\\s*{re.escape(reasoning.end)}"
        body = re.sub(rf"\A\s*{thought}", "", body)
    return _Sample(body.strip(), end)


def _json_layout(one: str, several: str | None, calls: Sequence[Call]) -> CallLayout | None:
    """Arguments as a JSON object, the name before them in JSON or not."""
    spans = _json_spans(several or one, calls[: 2 if several else 1])
    if spans is None:
        return None
    text = several or one
    separators = (", ", ": ") if '": ' in text[slice(*spans[0][1])] else (",", ":")
    return _layout(text, spans, JsonArguments(separators))


Span = tuple[int, int]


def _json_spans(text: str, calls: Sequence[Call]) -> list[tuple[Span, Span]] | None:
    """Where each call's name and arguments are."""
    spans: list[tuple[Span, Span]] = []
    at = 0
    for name, arguments in calls:
        begin = text.find(name, at)
        found = _find_json(text, begin + len(name), arguments) if begin >= 0 else None
        if found is None:
            return None
        spans.append(((begin, begin + len(name)), found))
        at = found[1]
    return spans


def _find_json(text: str, start: int, value: Any) -> Span | None:
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text[start:]):
        at = start + match.start()
        try:
            found, end = decoder.raw_decode(text, at)
        except ValueError:
            continue
        if found == value:
            return at, end
    return None


def _layout(
    text: str, spans: Sequence[tuple[Span, Span]], arguments: Arguments
) -> CallLayout | None:
    """What is before, between and behind the calls, shared out to the layout's markers."""
    name, given = spans[0]
    before = _slotted(_tokens(text[: name[0]]), 0)
    close_name = _slotted(_tokens(text[name[1] : given[0]]), 0)
    behind = _slotted(_tokens(text[spans[-1][1][1] :]), len(spans) - 1)
    if len(spans) == 1:
        return _with_keys(CallLayout(_marker(before), _marker(close_name), _marker(behind),
                                     arguments=arguments))  # fmt: skip
    (other, _) = spans[1]
    between = _slotted(_slotted(_tokens(text[given[1] : other[0]]), 0, index=False), 1)
    n_close = _common(between, behind)
    n_open = _common(between[n_close:][::-1], before[::-1])
    separator = between[n_close : len(between) - n_open]
    open_, call_open = before[: len(before) - n_open], before[len(before) - n_open :]
    if any(isinstance(token, Slot) for token in (*open_, *separator)):
        return None
    return _with_keys(
        CallLayout(
            _marker(call_open),
            _marker(close_name),
            _marker(behind[:n_close]),
            open="".join(map(str, open_)),
            separator="".join(map(str, separator)),
            close="".join(map(str, behind[n_close:])),
            arguments=arguments,
        )
    )


def _with_keys(layout: CallLayout) -> CallLayout:
    """The layout, with the members of its object where a call is one."""
    head = "".join(piece for piece in layout.call_open if isinstance(piece, str))
    middle = "".join(piece for piece in layout.close_name if isinstance(piece, str))
    if "{" not in head or not isinstance(layout.arguments, JsonArguments):
        return layout
    names = re.findall(r'"(\w+)"\s*:\s*"$', head)
    members = re.findall(r'"(\w+)"\s*:', middle)
    if re.search(r'\{\s*"$', head) and re.fullmatch(r'"\s*:\s*', middle):
        keys = JsonKeys(name_is_key=True)
    elif names and members:
        given = re.findall(r'"(\w+)"\s*:', head[head.index("{") :])
        others = [key for key in (*given, *members) if key not in (names[-1], members[-1])]
        keys = JsonKeys(names[-1], members[-1], others[0] if others else None)
    else:
        return layout
    return CallLayout(layout.call_open, layout.close_name, layout.call_close, layout.open,
                      layout.separator, layout.close, layout.arguments, keys)  # fmt: skip


def _tagged_layout(
    template: ChatTemplate, one: str, several: str | None, calls: Sequence[Call]
) -> CallLayout | None:
    """Arguments one by one, strings as they are."""
    name = one.find(calls[0][0])
    places = [one.find(text, name) for text in (_KEY, f"{_TEXT}0", _OTHER_KEY, str(_NUMBER))]
    if name < 0 or min(places) < 0 or places != sorted(places):
        return None
    key, value, other_key, other_value = places
    head = _tokens(one[name + len(calls[0][0]) : key])
    between = _tokens(one[value + len(f"{_TEXT}0") : other_key])
    tail = _tokens(one[other_value + len(str(_NUMBER)) :])
    n_open = _common(between[::-1], head[::-1])
    n_close = _common(between[: len(between) - n_open], tail)
    if not n_open or not n_close:
        return None
    arguments = TaggedArguments(
        open="".join(map(str, between[len(between) - n_open :])),
        close_key=one[key + len(_KEY) : value],
        close_value="".join(map(str, between[:n_close])),
        close_key_json=one[other_key + len(_OTHER_KEY) : other_value],
        separator="".join(map(str, between[n_close : len(between) - n_open])),
        cdata=_shows(template, "<qz>", "<![CDATA[<qz>]]>"),
        python_words=_shows(template, True, "True"),
    )
    text = several or one
    spans: list[tuple[Span, Span]] = []
    at = 0
    for call_name, given in calls[: 2 if several else 1]:
        begin = text.find(call_name, at)
        written = arguments.write(given)
        start = text.find(written, begin)
        if begin < 0 or start < 0:
            return None
        at = start + len(written)
        spans.append(((begin, begin + len(call_name)), (start, at)))
    return _layout(text, spans, arguments)


def _shows(template: ChatTemplate, value: Any, written: str) -> bool:
    sample = _render(template, [(_NAMES[0], {_KEY: value})])
    return sample is not None and written in sample.text


def _tokens(text: str) -> list[Token]:
    return list(_TOKEN.findall(text))


def _slotted(tokens: Sequence[Token], i: int, *, index: bool = True) -> list[Token]:
    """The tokens, with slots for the id and the number of call ``i``."""
    numbers = {str(i)} if index else set()
    return [
        Slot.ID if token == _IDS[i] else Slot.INDEX if token in numbers else token
        for token in tokens
    ]


def _common(one: Sequence[Token], other: Sequence[Token]) -> int:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return n


def _marker(tokens: Sequence[Token]) -> Marker:
    marker: list[Token] = []
    for token in tokens:
        if isinstance(token, str) and marker and isinstance(marker[-1], str):
            marker[-1] += token
        else:
            marker.append(token)
    return tuple(marker)
