"""Callers' Lark grammars within calls: the same texts, however a model's syntax writes them."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_chat_parser import CODER, DSML, FORMATS, GLM, HERMES
from tool_calls import Matcher, parse

from openai_local.chat.tool_formats import SchemaUnsupported, ToolFormat, gemma, minimax_m3
from openai_local.chat.tool_formats.input_grammar import _COMMON, InputGrammar
from openai_local.chat.tool_formats.lark import Lark

PATCH = """
start: begin file+ end
begin: "*** Begin Patch" LF
end: "*** End Patch" LF?
file: "*** Add File: " name LF line+   // all of it is new
name: /(.+)/
line: "+" /(.*)/ LF -> added
%import common.LF
"""
LIST = """
start: value
value: ESCAPED_STRING | INT | "[" [value ("," value)*] "]" -> list
%import common.ESCAPED_STRING
%import common.INT
%import common.WS
%ignore WS
"""
SUM = 'start: INT (OP INT)*\nOP: "+" | "*"\n%import common.INT\n%ignore / /\n'
GRAMMARS: list[tuple[str, list[str], list[str]]] = [
    (PATCH, ['*** Begin Patch\n*** Add File: a"b\n+x = "1\\n"\n+\n+\ty\n*** End Patch\n'],
     ["*** Begin Patch\n*** End Patch\n", "*** Begin Patch\n*** Add File: a\n-\n*** End Patch"]),
    (LIST, ['["a b", 12, [] ]', "[1 ,\n\t2]", '"\\""'], ['["a" "b"]', " 1", '"a', "[1 2]"]),
    (SUM, ["1 + 2*33"], ["1 +", "1 2"]),
    ('start: "a\\n" /b"c?/', ['a\nb"', 'a\nb"c'], ["a\\nb", "a\n"]),
    ("start: /[^x]+/", ['a\nb"\\é\t'], ["ax", ""]),
    ("start: /.+/", ['a"\\'], ["a\n", "\n"]),
    ("start: /.+/s", ["a\n"], [""]),
    ("start: /(?s:.)x/ /(?i)é\\n/", ["\nxÉ\n"], ["\nX\n"]),
    ('start: A*\nA: "a".."f" | "\\n"\n%ignore / /', ["a  b\n"], ["g"]),
    ('start: (A | B)*\nA: ~/a+/ & /[a-z]{3}/\nB: "x\\ny"i', ["aabX\nY"], ["aaa"]),
    ("start: (/[\"\\\\]/ | /[\\r\\n]/)+", ['"\\\r'], ["a"]),
    ('start: "{" /[}]/ // }', ["{}"], ["{"]),
    ("start: /\\p{L}+\\P{L}/", ['ab"', "é\\"], ["ab"]),
    ('start: x\nx: "a"~2..3 ["b"] "c"{1,2} ("d" | )', ["aabcd", "aaac"], ["abc"]),
    ('start: /"[a-z]+"/ /(a|ab)(c|bcd)?"|/', ['"x"abcd"', '"x"'], ['"x"abd"']),
    ('start: "a" /b"+/ "c"\n%ignore / /', ['a b"" c'], ['a b " c']),
    ('?start: /[a-z]+x"/', ['abx"'], ['ab"']),
    ('start: P\nP: K "x" /[a-z"]*/ "y"\nK: /[a-z"]*/\n', ['q"xz"y', "xy"], ['q"x', "y"]),
    ('start: quoted_a A\nquoted_a: "x"\nA: "\\n"', ["x\n"], ["x"]),
    ('start: "a" ("" | "\\n")', ["a", "a\n"], ["", "\n"]),
    ('start: A A\nA: "a" | "\\n"\nB: /[ |"]+/\n%ignore B', ["a | a", 'a"\n'], ["a", " aa"]),
]  # fmt: skip


def within_json(definition: str) -> str:
    lark = Lark()
    inner = InputGrammar(definition).quoted(lark)
    return lark.build(f'"\\"" {inner} "\\""')


@pytest.mark.parametrize(("definition", "good", "bad"), GRAMMARS)
def test_within_a_json_string_a_grammar_has_the_texts_that_it_has(
    definition: str, good: list[str], bad: list[str]
) -> None:
    matcher, grammar = Matcher(), within_json(definition)
    for text in good:
        assert matcher.accepts(definition, text), text
        assert matcher.accepts(grammar, json.dumps(text, ensure_ascii=False)), text
    for text in bad:
        assert not matcher.accepts(definition, text), text
        assert not matcher.accepts(grammar, json.dumps(text, ensure_ascii=False)), text


chars = st.sampled_from(["a", "b", '"', "\n", "\\", "é"])
_written = {'"': '"', "\n": r"\n", "\\": r"\\"}
atoms = st.one_of(
    chars.map(lambda char: _written.get(char, char)),
    st.sampled_from([".", r"\s", r"\S", r"\w", '[^"]', '["a\\n]', r"[a-z\\]", "(?s:.)", "(?i:A)"]),
)
regexes = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}"])).map(
            lambda both: f"(?:{both[0]}){both[1]}"
        ),
        st.tuples(atoms, st.sampled_from(["*", "+"])).map("".join),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=150)
@given(regexes, st.lists(st.text(chars, max_size=5), max_size=15))
def test_an_expression_has_the_same_texts_within_a_json_string(
    regex: str, texts: list[str]
) -> None:
    matcher, plain = Matcher(), f"start: /{regex}/"
    quoted = within_json(plain)
    for text in texts:
        written = json.dumps(text, ensure_ascii=False)
        assert matcher.accepts(plain, text) is matcher.accepts(quoted, written), text


def test_common_terminals_are_those_of_llguidance() -> None:
    tokenizer = Matcher()._tokenizer

    def is_within(one: str, other: str) -> bool:
        grammar = f"start: X\nX: {one} & ~{other}\n%import common.{name} -> A\nB: /{_COMMON[name]}/"
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        matcher.compute_bitmask()
        return matcher.is_error()

    for name in _COMMON:
        assert is_within("A", "B") and is_within("B", "A"), name
        assert not is_within("A", "/zz/")


def tool_of(definition: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"input": {"type": "string"}},
                  "required": ["input"]}  # fmt: skip
    function = {"name": "run", "parameters": parameters}
    return {"type": "function", "function": function, "lark": definition}


@pytest.mark.parametrize("found", FORMATS, ids=lambda found: found.name)
def test_a_call_in_each_syntax_is_bound_to_the_grammar_of_its_input(found: ToolFormat) -> None:
    tool = tool_of(SUM)
    grammar = found.grammar([tool], required=True, parallel=False)
    matcher = Matcher()
    for text, good in (("1 + 2*33", True), ("1 + x", False), ("1 +", False)):
        call = found.write([("run", {"input": text})]).removeprefix(">>>")
        call = call.replace("callid", "").replace("call0", "abcd0")
        assert matcher.accepts(grammar, call) is good, call
    if found.name not in ("functionary", "harmony"):
        read = parse(list(found.write([("run", {"input": "1 + 2"})])), tools=[tool],
                     tool_format=found)  # fmt: skip
        assert read.objects == [("run", {"input": "1 + 2"})]


def test_an_input_of_many_lines_is_bound_where_calls_are_json() -> None:
    grammar = HERMES.grammar([tool_of(PATCH)], required=True, parallel=False)
    for text, good in ((GRAMMARS[0][1][0], True), (GRAMMARS[0][2][0], False)):
        call = HERMES.write([("run", {"input": text})])
        assert Matcher().accepts(grammar, call) is good


@pytest.mark.parametrize(
    ("found", "definition"),
    [
        (CODER, 'start: /[a-z]+/ "\\n"'),  # with which the mark behind it begins
        (CODER, 'start: ("<" | "/" | "parameter" | ">")+'),
        (GLM, "start: /[^a]+/"),
        (GLM, "start: /(?s:.*)/ & ~/a/"),
        (DSML, "start: /.+/"),
        (gemma.FORMAT, 'start: /["<>|]+/'),
        (minimax_m3.FORMAT, PATCH),
    ],
)
def test_texts_that_would_end_themselves_are_refused(found: ToolFormat, definition: str) -> None:
    with pytest.raises(SchemaUnsupported, match="of the tool run cannot stand within a call"):
        found.grammar([tool_of(definition)], required=True, parallel=False)


def test_what_stands_between_tokens_may_have_the_other_characters() -> None:
    special = Matcher(['<|"|>']).special
    grammar = gemma.FORMAT.grammar(
        [tool_of('start: /[a-z"<\\n]+/')], required=True, parallel=False, special=special
    )
    call = gemma.FORMAT.write([("run", {"input": 'a"<b\n'})])
    assert Matcher(['<|"|>']).accepts(grammar, call)


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ('start: %json {"type": "string"}', "%json"),
        ("start: <|token|>", "<|token|>"),
        ("start: @other", "@other"),
        ('start: "a"\n} }\nfoo: "b"', "}"),
        ('start: a\na[lazy]: /b+/', ":"),
        ('start: a\na[stop="x"]: /b+/', '="x"'),
        ('%llguidance {"no_forcing": true}\nstart: "a"', "%llguidance"),
        ('"a"', "has \"a\""),
        ("%import other.INT\nstart: INT", "%import"),
        ("%import common.NONE\nstart: NONE", "common.NONE"),
        ('start: A\nA: /a"/ & /.+/', "A, which combines"),
        ("start: A\nA: ~/a/", "A, which combines"),
        ('start: A "\\n"\nA: "a"\n%import common.SH_COMMENT\n%ignore SH_COMMENT', "%ignore"),
        ('start: /")(/', "not opened"),
        ('start: "\\n"\n%ignore /(/', "not closed"),
        ("start: a\n" + "\n".join(f'a{i}: "x"' for i in range(1000)), "1000 rules"),
        ('start: "\\q"', "q"),
        ('start: "\\u001b"', "JSON strings"),
        (r"start: /a\b/", r"\b"),
        ("start: /[a&&b]/", "[a&&"),
        ("start: /[[:alpha:]]/", "[["),
        (r"start: /\p{Greek}/", "Greek"),
        ("start: /(?x)a/", "(?x)"),
        ("start: /a/x", "flags x"),
        ("start: /a^b/", "^"),
        (r"start: /\x{110000}/", "110000"),
        ('start: "ab".."c"', "ab"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_refused_with_what_it_is(definition: str, reason: str) -> None:
    with pytest.raises(SchemaUnsupported) as refused:
        within_json(definition)
    assert reason in str(refused.value)
