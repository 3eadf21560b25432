from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_local.engine.messages import UnstoppedText
from openai_local.engine.text import Detokenizer


def test_a_stop_string_split_across_tokens_is_held_back() -> None:
    text = Detokenizer(("END",))
    assert text.feed(b"one E") == "one "
    assert text.feed(b"N") == ""
    assert text.feed(b"D two") == ""
    assert text.stopped
    assert text.finish() == ""


def test_what_did_not_become_a_stop_string_is_released() -> None:
    text = Detokenizer(("END",))
    assert text.feed(b"E") == ""
    assert text.feed(b"Nd") == "ENd"
    assert text.feed(b"EN") == ""
    assert text.finish() == "EN"
    assert not text.stopped


def test_half_a_character_waits_for_its_rest() -> None:
    text = Detokenizer()
    first, rest = "é".encode()[:1], "é".encode()[1:]
    assert text.feed(first) == ""
    assert text.feed(rest) == "é"


def test_bytes_that_end_inside_a_character_become_a_replacement() -> None:
    text = Detokenizer()
    assert text.feed("é".encode()[:1]) == ""
    assert text.finish() == "\ufffd"


@pytest.mark.parametrize("stop", [(), ("ab",), ("aab", "b\u20ac")])
@given(text=st.text(alphabet="ab\u20ac", max_size=30), cuts=st.lists(st.integers(0, 90)))
def test_any_split_gives_the_same_text(stop: tuple[str, ...], text: str, cuts: list[int]) -> None:
    data = text.encode()
    found = [at for s in stop if (at := text.find(s)) >= 0]
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = Detokenizer(stop)
    out = "".join(parts.feed(data[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
    out += parts.finish()
    assert parts.stopped == bool(found)
    assert out == (text[: min(found)] if found else text)


UNSTOPPED = UnstoppedText(marks=("<call>", "[T]"), first=('{"n',))
# Stop strings, a text, and what of it is said.
UNSTOPPED_TEXTS = [
    (("x",), "a<call>x</call>x", "a<call>x</call>x"),
    (("x",), "ax<call>x", "a"),
    (("<",), "a <b <call>", "a "),
    (("<",), "a<call> <", "a<call> <"),
    (("<call>",), "a<call>b", "a<call>b"),
    (("<c",), "a<ca", "a"),
    (("<c",), "a<call", "a"),
    (("call",), "a<calls", "a<"),
    (("all>b",), "<call>b", "<call>b"),
    (("n",), '\n {"name": n', '\n {"name": n'),
    (("n",), 'a {"name": n', 'a {"'),
    (("{",), '{"m', ""),
    (("{",), '{"n', '{"n'),
    (("]", "T"), "[[T]]T", "[[T]]T"),
    (("]", "[["), "[[T]]T", ""),
]


@pytest.mark.parametrize(("stop", "text", "said"), UNSTOPPED_TEXTS)
def test_from_a_mark_on_no_stop_string_ends_the_text_however_it_comes(
    stop: tuple[str, ...], text: str, said: str
) -> None:
    for step in range(1, len(text) + 1):
        parts = Detokenizer(stop, UNSTOPPED)
        out = "".join(parts.feed(text[at : at + step].encode()) for at in range(0, len(text), step))
        out += parts.finish()
        assert (out, parts.stopped) == (said, said != text)
