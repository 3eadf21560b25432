"""What models really write, taken apart; and what they should not have written."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_calls import ADD, TOOLS, WEATHER, Message, fold, parse, parse_in_all_ways, tool

from openai_local.chat.parser import ChatParser, ContentDelta, ToolCallArguments, ToolCallStart
from openai_local.chat.reasoning import ReasoningFormat
from openai_local.chat.tool_formats import (
    ToolFormat,
    gemma,
    granite,
    harmony,
    hermes,
    lfm2,
    minimax_m3,
)
from openai_local.chat.tool_formats.arguments import TaggedArguments
from openai_local.chat.tool_formats.cursor import Cursor, Slot
from openai_local.chat.tool_formats.functionary import FORMAT as FUNCTIONARY
from openai_local.chat.tool_formats.json_reader import JsonKeys
from openai_local.chat.tool_formats.layout import CallLayout

THINK = ReasoningFormat("<think>", "</think>")
HERMES = hermes.FORMAT
CODER = ToolFormat(
    "coder",
    CallLayout(
        ("<tool_call>\n<function=",),
        (">",),
        ("\n</function>\n</tool_call>",),
        separator="\n",
        arguments=TaggedArguments("\n<parameter=", ">\n", "\n</parameter>", ">\n"),
    ),
)
GLM = ToolFormat(
    "glm",
    CallLayout(
        ("<tool_call>",),
        (),
        ("\n</tool_call>",),
        separator="\n",
        arguments=TaggedArguments(
            "\n<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>", "</arg_key>\n<arg_value>"
        ),
    ),
)
DSML = ToolFormat(
    "dsml",
    CallLayout(
        ('<invoke name="',),
        ('">',),
        ("\n</invoke>\n",),
        open="<calls>\n",
        close="</calls>",
        arguments=TaggedArguments(
            '\n<parameter name="', '" string="true">', "</parameter>", '" string="false">'
        ),
    ),
)
MISTRAL = ToolFormat("mistral", CallLayout(("[TOOL_CALLS]",), ("[CALL_ID]", Slot.ID, "[ARGS]"), ()))
KIMI = ToolFormat(
    "kimi",
    CallLayout(
        ("<|tool_call_begin|>functions.",),
        (":", Slot.INDEX, "<|tool_call_argument_begin|>"),
        ("<|tool_call_end|>",),
        open="<|tool_calls_section_begin|>",
        close="<|tool_calls_section_end|>",
    ),
)
NEMO = ToolFormat(
    "nemo",
    CallLayout(
        ('{"name": "',),
        ('", "arguments": ',),
        (', "id": "', Slot.ID, '"}'),
        open="[TOOL_CALLS][",
        separator=", ",
        close="]",
        keys=JsonKeys(id="id"),
    ),
)
LLAMA = ToolFormat(
    "llama",
    CallLayout(
        ('{"name": "',),
        ('", "parameters": ',),
        ("}",),
        keys=JsonKeys(arguments="parameters"),
    ),
    prefixes=("<|python_tag|>",),
)
PARIS = ("get_weather", {"city": "Paris"})
SUM = ("add", {"numbers": [1, 2.5]})

OUTPUTS: list[tuple[str, ToolFormat, str, str, list[Any]]] = [
    ("one", HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
     "</tool_call>", "", [PARIS]),
    ("no space", HERMES, '<tool_call>{"name":"get_weather","arguments":{"city":"Paris"}}'
     "</tool_call>", "", [PARIS]),
    ("two", HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
     '</tool_call>\n<tool_call>\n{"name": "add", "arguments": {"numbers": [1, 2.5]}}\n'
     "</tool_call>\n", "", [PARIS, SUM]),
    ("words before", HERMES, 'I look.\n\n<tool_call>\n{"name": "get_weather", "arguments": '
     '{"city": "Paris"}}\n</tool_call>', "I look.", [PARIS]),
    ("words behind", HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"'
     "}}\n</tool_call>\nDone.", "Done.", [PARIS]),
    ("arguments first", HERMES, '<tool_call>\n{"arguments": {"city": "Paris"}, "name": '
     '"get_weather"}\n</tool_call>', "", [PARIS]),
    ("in a function", HERMES, '<tool_call>\n{"type": "function", "function": {"name": '
     '"get_weather", "arguments": {"city": "Paris"}}}\n</tool_call>', "", [PARIS]),
    ("as text", HERMES, '<tool_call>\n{"name": "get_weather", "arguments": "{\\"city\\": '
     '\\"Paris\\"}"}\n</tool_call>', "", [PARIS]),
    ("no arguments", HERMES, '<tool_call>\n{"name": "add"}\n</tool_call>', "", [("add", {})]),
    ("braces in text", HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": '
     '"}]\\"{</tool_call>"}}\n</tool_call>', "",
     [("get_weather", {"city": '}]"{</tool_call>'})]),
    ("no end", HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}',
     "", [PARIS]),
    ("tags", CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
     "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", "",
     [("get_weather", {"city": "Paris", "days": 3})]),
    ("tags on a line", CODER, "<tool_call><function=get_weather><parameter=city>Paris</parameter>"
     "</function></tool_call>", "", [PARIS]),
    ("a number as text", CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\n75001\n"
     "</parameter>\n</function>\n</tool_call>", "", [("get_weather", {"city": "75001"})]),
    ("lines in text", CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\n\n a\n<b>\n\n"
     "</parameter>\n</function>\n</tool_call>", "", [("get_weather", {"city": "\n a\n<b>\n"})]),
    ("python's words", CODER, "<tool_call>\n<function=add>\n<parameter=numbers>\n[1]\n</parameter>"
     "\n<parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>", "",
     [("add", {"numbers": [1], "exact": True})]),
    ("no tags", CODER, "<tool_call>\n<function=add>\n</function>\n</tool_call>", "", [("add", {})]),
    ("keys and values", GLM, "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris"
     "</arg_value>\n</tool_call>", "", [PARIS]),
    ("keys without space", GLM, "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris"
     "</arg_value></tool_call>", "", [PARIS]),
    ("told apart", DSML, '<calls>\n<invoke name="get_weather">\n<parameter name="city" '
     'string="true">Paris</parameter>\n<parameter name="more" string="false">[1]</parameter>\n'
     "</invoke>\n</calls>", "", [("get_weather", {"city": "Paris", "more": [1]})]),
    ("told apart against the schema", DSML, '<calls>\n<invoke name="get_weather">\n<parameter '
     'name="city" string="false">"Paris"</parameter>\n<parameter name="days" string="true">3'
     "</parameter>\n</invoke>\n</calls>", "", [("get_weather", {"city": "Paris", "days": "3"})]),
    ("mistral", MISTRAL, '[TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{"city": "Paris"}'
     '[TOOL_CALLS]add[CALL_ID]abcDEF124[ARGS]{"numbers": [1, 2.5]}', "", [PARIS, SUM]),
    ("mistral of old", NEMO, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"},'
     ' "id": "abcDEF123"}, {"name": "add", "arguments": {"numbers": [1, 2.5]}, "id": "a"}]', "",
     [PARIS, SUM]),
    ("mistral of old, spaced", NEMO, '[TOOL_CALLS] [{"name": "get_weather", "arguments": '
     '{"city": "Paris"}}]', "", [PARIS]),
    ("kimi", KIMI, "Well.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
     '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>'
     'functions.add:12<|tool_call_argument_begin|>{"numbers": [1, 2.5]}<|tool_call_end|>'
     "<|tool_calls_section_end|>", "Well.", [PARIS, SUM]),
    ("llama", LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama's tag", LLAMA, '<|python_tag|>{"name": "get_weather", "parameters": '
     '{"city": "Paris"}}', "", [PARIS]),
    ("granite", granite.FORMAT, '<|tool_call|>[{"name": "get_weather", "arguments": {"city": '
     '"Paris"}}, {"name": "add", "arguments": {"numbers": [1, 2.5]}}]', "", [PARIS, SUM]),
    ("lfm2", lfm2.FORMAT, 'Well.<|tool_call_start|>[get_weather(city="Paris"), '
     "add(numbers=[1, 2.5], exact=True)]<|tool_call_end|>", "Well.",
     [PARIS, ("add", {"numbers": [1, 2.5], "exact": True})]),
    ("lfm2's strings", lfm2.FORMAT, "<|tool_call_start|>[get_weather(city='it\\'s\\n\"a\\\\b\" "
     "\\u00e9\\x41\\q', days=None)]<|tool_call_end|>", "",
     [("get_weather", {"city": 'it\'s\n"a\\b" éA\\q', "days": None})]),
    ("lfm2's literals", lfm2.FORMAT, "<|tool_call_start|>[add(numbers=[1, (2,), {'a': False}], "
     "exact=true)]<|tool_call_end|>", "",
     [("add", {"numbers": [1, [2], {"a": False}], "exact": True})]),
    ("lfm2, empty", lfm2.FORMAT, "<|tool_call_start|>[add()]<|tool_call_end|>", "", [("add", {})]),
    ("gemma", gemma.FORMAT, '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
     "<|tool_call>call:add{exact:false,numbers:[1,2.5]}<tool_call|>", "",
     [PARIS, ("add", {"exact": False, "numbers": [1, 2.5]})]),
    ("gemma, nested", gemma.FORMAT, '<|tool_call>call:add{numbers:[],o:{a:<|"|>}]"<|"|>,b:{},'
     "c:null},t:-1e3}<tool_call|>", "",
     [("add", {"numbers": [], "o": {"a": '}]"', "b": {}, "c": None}, "t": -1000.0})]),
    ("minimax", minimax_m3.FORMAT, 'Well.]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="'
     'get_weather">]<]minimax[>[<city>Paris]<]minimax[>[</city>]<]minimax[>[</invoke>\n'
     ']<]minimax[>[<invoke name="add">]<]minimax[>[<numbers>]<]minimax[>[<item>1]<]minimax[>['
     "</item>]<]minimax[>[<item>2.5]<]minimax[>[</item>]<]minimax[>[</numbers>]<]minimax[>["
     "</invoke>\n]<]minimax[>[</tool_call>", "Well.", [PARIS, SUM]),
    ("harmony", harmony.FORMAT, '<|channel|>commentary to=functions.get_weather <|constrain|>json'
     '<|message|>{"city":"Paris"}<|call|>', "", [PARIS]),
    ("harmony, role", harmony.FORMAT, ' to=functions.get_weather<|channel|>commentary json'
     '<|message|>{"city":"Paris"}', "", [PARIS]),
    ("harmony, words", harmony.FORMAT, "<|channel|>commentary<|message|>I look.<|end|><|start|>"
     'assistant<|channel|>commentary to=functions.add<|message|>{"numbers":[1,2.5]}<|call|>',
     "I look.", [SUM]),
    ("functionary", FUNCTIONARY, 'all\nI look.>>>get_weather\n{"city": "Paris"}', "I look.",
     [PARIS]),
]  # fmt: skip


def start_of(found: ToolFormat) -> str:
    return {"harmony": "<|start|>assistant", "functionary": "\n\n>>>"}.get(found.name, "")


@pytest.mark.parametrize(
    ("found", "text", "content", "calls"),
    [output[1:] for output in OUTPUTS],
    ids=[output[0] for output in OUTPUTS],
)
def test_what_a_model_writes_comes_apart(
    found: ToolFormat, text: str, content: str, calls: list[Any]
) -> None:
    message = parse_in_all_ways(text, tool_format=found, prompt=start_of(found))
    assert (message.content, message.objects) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\n",
        "Look: <tool_call> is a tag.",
        '<tool_call>\n{"name": "launch", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"nam',
        '<tool_call>\n{"name": "get_weat',
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        "<tool_call>\n[1, 2]\n</tool_call>",
        "<tool_call>get_weather(city='Paris')</tool_call>",
        "a < b <t <tool <tool_call",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse_in_all_ways(text, tool_format=HERMES) == Message(content=text)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (CODER, "<tool_call>\n<function=launch>\n</function>\n</tool_call>"),
        (CODER, "<tool_call>\n<function=get_weather"),
        (MISTRAL, "[TOOL_CALLS]launch[CALL_ID]abcDEF123[ARGS]{}"),
        (MISTRAL, "[TOOL_CALLS]get_weather[ARG"),
        (KIMI, "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather<|x|>"),
        (LLAMA, '{"name": "launch", "parameters": {}}'),
        (LLAMA, '{"a": [1, {"name": "get_weather"}]} and more'),
        (LLAMA, '  {"city": "Paris"}'),
        (lfm2.FORMAT, "[link text](url) <|tool_call_start|>[launch()]"),
        (gemma.FORMAT, "<|tool_call>call:launch{}<tool_call|>"),
        (minimax_m3.FORMAT, ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="launch">'),
        (FUNCTIONARY, "all\n>>> print(1)\n1\n>>>"),
    ],
)
def test_what_is_no_call_stays_text_in_other_syntaxes(found: ToolFormat, text: str) -> None:
    message = parse_in_all_ways(text, tool_format=found, prompt=start_of(found))
    assert message == Message(content=text.removeprefix("all\n"))


@pytest.mark.parametrize(("found", "text"), [(output[1], output[2]) for output in OUTPUTS])
def test_an_output_that_is_cut_off_loses_nothing_of_a_call_begun(
    found: ToolFormat, text: str
) -> None:
    whole = parse(text, tool_format=found, prompt=start_of(found))
    for end in range(len(text)):
        message = parse(text[:end], tool_format=found, prompt=start_of(found))
        assert parse(list(text[:end]), tool_format=found, prompt=start_of(found)) == message
        for call, (name, arguments) in zip(message.calls, whole.calls, strict=False):
            assert call[0] == name
            same = os.path.commonprefix([call[1], arguments])
            assert len(same) >= len(call[1]) - 25, "what may be half a mark is kept as text"


@pytest.mark.parametrize(("found", "text"), [(output[1], output[2]) for output in OUTPUTS])
def test_what_is_cut_off_within_a_mark_is_no_content(found: ToolFormat, text: str) -> None:
    options: dict[str, Any] = {"tool_format": found, "prompt": start_of(found)}
    whole = parse(text, **options)
    for end in range(len(text)):
        message = parse(text[:end], cut=True, **options)
        assert parse(list(text[:end]), cut=True, **options) == message
        # Of what is JSON all over a few characters may be an answer still.
        if not (found.alone and len(text[:end].strip()) < len('{"name"')):
            assert whole.content.startswith(message.content.rstrip())
        assert [name for name, _ in message.calls] == [
            name for name, _ in whole.calls[: len(message.calls)]
        ]


def test_a_name_comes_at_once_and_arguments_as_they_are_written() -> None:
    parser = ChatParser(tools=TOOLS, tool_format=HERMES)
    assert parser.feed('<tool_call>\n{"name": "get_weather", "argum') == []
    assert parser.feed('ents": {"ci') == [
        ToolCallStart(0, "get_weather"),
        ToolCallArguments(0, '{"ci'),
    ]
    assert parser.feed('ty": "Par') == [ToolCallArguments(0, 'ty": "Par')]


def test_a_string_in_tags_comes_as_it_is_written() -> None:
    parser = ChatParser(tools=TOOLS, tool_format=CODER)
    parser.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\n")
    assert parser.feed('New "Yo') == [ToolCallArguments(0, 'New \\"Yo')]


def test_the_id_that_a_model_makes_is_told() -> None:
    parser = ChatParser(tools=TOOLS, tool_format=MISTRAL)
    deltas = parser.feed("[TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{}")
    assert deltas[0] == ToolCallStart(0, "get_weather", "abcDEF123")


def test_content_is_not_held_back_without_need() -> None:
    parser = ChatParser(tools=TOOLS, tool_format=HERMES)
    assert parser.feed("a <tool") == [ContentDelta("a")]
    assert parser.feed("s b") == [ContentDelta(" <tools b")]


def test_with_nothing_to_look_for_text_goes_through() -> None:
    parser = ChatParser(tool_format=HERMES)
    assert parser.feed(" <tool_call> \n") == [ContentDelta(" <tool_call> \n")]
    assert parser.feed("") == parser.finish() == []


@pytest.mark.parametrize(
    ("prompt", "text", "thought", "content"),
    [
        ("", "<think>\nI know.\n</think>\n\nYes.\n", "I know.", "Yes.\n"),
        ("", "Yes. <think> no </think>", "", "Yes. <think> no </think>"),
        ("", " \n Yes.", "", " \n Yes."),
        ("", "<thin", "", "<thin"),
        ("", "</think>Yes.", "", "Yes."),
        ("<think>\n", "I know.</think>Yes.", "I know.", "Yes."),
        ("<think>\n", "<think>\nI know.</think>Yes.", "I know.", "Yes."),
        ("<think>\n", "I know", "I know", ""),
        ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("", "<think></think>Yes.", "", "Yes."),
        ("", "<think>a\n\n b</think>\n", "a\n\n b", ""),
    ],
)
def test_thoughts_are_told_from_the_answer(
    prompt: str, text: str, thought: str, content: str
) -> None:
    message = parse_in_all_ways(text, tools=[], reasoning=THINK, prompt=prompt)
    assert message == Message(content=content, reasoning=thought)


def test_a_thought_before_a_call() -> None:
    text = '<think>Hm.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    message = parse_in_all_ways(text, tool_format=HERMES, reasoning=THINK)
    assert message == Message(reasoning="Hm.", calls=[("add", "{}")])


def test_a_call_in_a_thought_is_a_thought() -> None:
    text = '<think><tool_call>\n{"name": "add", "arguments": {}}\n</tool_call></think>Yes.'
    message = parse_in_all_ways(text, tool_format=HERMES, reasoning=THINK)
    assert message.calls == []
    assert message.content == "Yes."


def test_a_thought_without_a_mark_of_its_own_ends_at_a_call_too() -> None:
    apriel = ReasoningFormat("", "[BEGIN FINAL RESPONSE]", ("[END FINAL RESPONSE]",))
    text = 'Hm.\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    message = parse_in_all_ways(text, tool_format=HERMES, reasoning=apriel)
    assert message == Message(reasoning="Hm.", calls=[("add", "{}")])
    text = "Hm.\n[BEGIN FINAL RESPONSE]\nYes.\n[END FINAL RESPONSE]"
    message = parse_in_all_ways(text, tools=[], reasoning=apriel)
    assert message == Message(content="Yes.\n", reasoning="Hm.")


def test_marks_around_an_answer_are_left_out() -> None:
    cohere = ReasoningFormat("<T>", "</T>", ("<R>", "</R>"))
    message = parse_in_all_ways("<T>Hm.</T><R>Yes.</R>", tools=[], reasoning=cohere)
    assert message == Message(content="Yes.", reasoning="Hm.")
    message = parse_in_all_ways("A <R> is </R>.", tools=[], reasoning=cohere)
    assert message == Message(content="A <R> is </R>.")


def test_harmony_in_all_its_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Yes. to=functions.add\n<|return|>"
    )
    message = parse_in_all_ways(text, tools=[], tool_format=harmony.FORMAT)
    assert message == Message(content="Yes. to=functions.add\n", reasoning="Hm.")
    begun = "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>It is"
    message = parse_in_all_ways(" so.", tools=[], tool_format=harmony.FORMAT, prompt=begun)
    assert message == Message(content=" so.")


def test_harmony_without_headers_is_text() -> None:
    for text in (" Yes. It is so.", "<|channel|>final", "a<|message|>b", "x" * 2000):
        assert parse_in_all_ways(text[:40], tool_format=harmony.FORMAT).content == text[:40]
        assert parse(list(text), tool_format=harmony.FORMAT).content == text


def test_the_caller_is_told_of_thoughts_and_calls() -> None:
    parser = ChatParser(tools=TOOLS, tool_format=HERMES, reasoning=THINK, prompt="<think>")
    assert parser.in_reasoning
    parser.feed("I know.")
    assert (parser.in_reasoning, parser.n_reasoning_chars) == (True, 7)
    parser.feed("</think>Yes")
    assert not parser.in_reasoning
    parser.feed('<tool_call>{"name": "add", "arguments": {')
    assert parser.n_calls == 1


TYPED = tool(
    "typed",
    text={"type": "string"},
    number={"type": "number"},
    maybe={"type": ["string", "null"]},
    any={},
    either={"anyOf": [{"type": "integer"}, {"type": "string"}]},
    thing={"type": "object"},
)


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("text", "3", "3"),
        ("text", '"a"', '"a"'),
        ("text", "null", "null"),
        ("number", "3", 3),
        ("number", " 3.5 ", 3.5),
        ("number", "NaN", "NaN"),
        ("maybe", "null", None),
        ("maybe", "None", None),
        ("maybe", "3", "3"),
        ("any", "3", 3),
        ("any", "three", "three"),
        ("either", "3", 3),
        ("either", "3.5", "3.5"),
        ("either", "[3]", "[3]"),
        ("thing", '{"a": 1}', {"a": 1}),
        ("thing", "broken {", "broken {"),
        ("unheard_of", "[1]", [1]),
    ],
)
def test_a_value_in_tags_is_of_the_type_that_the_schema_has(
    key: str, written: str, value: Any
) -> None:
    text = f"<tool_call>\n<function=typed>\n<parameter={key}>\n{written}\n</parameter>\n"
    text += "</function>\n</tool_call>"
    message = parse_in_all_ways(text, tools=[TYPED], tool_format=CODER)
    assert message.objects == [("typed", {key: value})]


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<function=add>", "</function>", "\n",
    "<parameter=", "numbers", "exact", ">", "</parameter>", "add", "get_weather", "{", "}", "[",
    "]", '"', ":", ",", '{"name": "add", "arguments": {', '"numbers": [1]', "}}", " ", "\\", "é",
    "<", "call:", '<|"|>', "<|tool_call>", "<tool_call|>", "<|channel|>", "<|message|>",
    "<|start|>", "assistant", "final", "analysis", " to=functions.add", "<|end|>", "all", ">>>",
    "<|tool_call_start|>[", "add(", ")", "exact=", "'", "]<]minimax[>[", "<invoke name=\"add\">",
    "</invoke>", "<item>", "</item>", "<numbers>", "</numbers>", "<|python_tag|>", "True",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "]<]minimax[>[<tool_call>",
]  # fmt: skip
FORMATS = [HERMES, CODER, GLM, DSML, MISTRAL, KIMI, NEMO, LLAMA, granite.FORMAT, lfm2.FORMAT,
           gemma.FORMAT, minimax_m3.FORMAT, harmony.FORMAT, FUNCTIONARY]  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    found=st.sampled_from(FORMATS),
    parts=st.lists(st.sampled_from(FRAGMENTS), max_size=14),
    cuts=st.lists(st.integers(0, 120), max_size=4),
    reasoning=st.sampled_from([None, THINK]),
    prompt=st.sampled_from(["", "<think>", ">>>"]),
)
def test_pieces_do_not_depend_on_the_cuts_and_nothing_ever_raises(
    found: ToolFormat,
    parts: list[str],
    cuts: list[int],
    reasoning: ReasoningFormat | None,
    prompt: str,
) -> None:
    text = "".join(parts)
    options: dict[str, Any] = {"tool_format": found, "reasoning": reasoning, "prompt": prompt}
    whole = parse(text, **options)
    places = sorted({cut for cut in cuts if cut < len(text)})
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert parse(pieces, **options) == whole
    assert parse(list(text), **options) == whole


def test_a_long_stream_takes_time_in_step_with_its_length() -> None:
    parser = ChatParser(tools=[WEATHER, ADD], tool_format=CODER, reasoning=THINK)
    deltas = parser.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\n")
    for _ in range(20_000):
        deltas += parser.feed("word < ")
    held = len(parser._cursor.text)
    assert held < 10_000, "what was read is forgotten"
    deltas += parser.feed("\n</parameter>\n</function>\n</tool_call>")
    message = fold([*deltas, *parser.finish()])
    assert message.objects == [("get_weather", {"city": "word < " * 20_000})]


@pytest.mark.parametrize(
    ("found", "start", "more"),
    [
        (lfm2.FORMAT, "<|tool_call_start|>[add(numbers=", "["),
        (gemma.FORMAT, "<|tool_call>call:add{numbers:", "["),
        (gemma.FORMAT, "<|tool_call>call:add{numbers:", "{a:"),
        (minimax_m3.FORMAT, ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="add">',
         "]<]minimax[>[<thing>"),
        (HERMES, "<tool_call>", '{"function": '),
        (HERMES, '<tool_call>{"name": "add", "arguments": ', "["),
    ],
)  # fmt: skip
def test_values_nested_without_end_end(found: ToolFormat, start: str, more: str) -> None:
    tools = [tool("add", thing={"type": "object", "optional": True})]
    message = parse(start + more * 5000, tools=tools, tool_format=found)
    assert len(message.calls) <= 1


def test_a_schema_that_makes_no_sense_is_read_all_the_same() -> None:
    odd = {"properties": {"a": {"$ref": "#/none"}, "b": {"type": [{}]}, "c": 3, "d": False}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": odd}},
             {"type": "function", "function": {"name": "g", "parameters": 3}}]  # fmt: skip
    for found in (CODER, minimax_m3.FORMAT):
        for name in "fg":
            text = found.write([(name, {"a": ["x"], "b": 1, "c": {"d": 1}, "d": True})])
            message = parse_in_all_ways(text, tools=tools, tool_format=found)
            assert [called for called, _ in message.calls] == [name]


@pytest.mark.parametrize(
    ("markers", "text", "before", "found"),
    [
        (["<x>", "ab<x>y"], "zab<x>y", "z", "ab<x>y"),
        (["<x>", "ab<x>y"], "zab<x>z", "zab", "<x>"),
        (["<x>", "<x>y"], "z<x>y", "z", "<x>y"),
        (["<x>", "<x>y"], "z<x>z", "z", "<x>"),
        (["<x>", "<x>y"], "z<x>", "z", "<x>"),
        (["aab"], "aaab", "a", "aab"),
        (["<x>"], "z<x", "z<x", None),
    ],
)
def test_the_first_and_longest_mark_is_found_however_it_comes(
    markers: list[str], text: str, before: str, found: str | None
) -> None:
    for cuts in ([text], list(text), [text[:-1], text[-1:]]):
        cursor, passed, results = Cursor(), [], []

        def reading(cursor: Cursor, passed: list[str], results: list[Any]) -> Any:
            results.append((yield from cursor.until(markers, passed.append)))

        steps = reading(cursor, passed, results)
        for part in cuts:
            cursor.feed(part)
            next(steps, None)
        cursor.closed = True
        for _ in steps:
            pass
        assert ("".join(passed), results) == (before, [found])
