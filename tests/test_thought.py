"""A thought that has had its tokens is closed, in whatever tokens its marks are."""

from __future__ import annotations

from driver import Driver
from fakes import FakeBackend, FakeVocabulary, spelling
from hypothesis import given
from hypothesis import strategies as st

from openai_local.engine import GenerationRequest, TextDelta, ThoughtLimit
from openai_local.engine.thought import ThoughtCloser

CONTROLS = ("<think>", "</think>")
PROMPT = [97 + i % 26 for i in range(70)]


def closed(text: str, limit: ThoughtLimit, controls: tuple[str, ...] = ()) -> str:
    """``text``, as a model would write it that goes on as it likes once the thought is closed."""
    vocabulary = FakeVocabulary(controls=controls)
    closer = ThoughtCloser(limit, vocabulary)
    out: list[int] = []
    for token in vocabulary.tokenize(text, add_special=False, parse_special=True):
        while (due := closer.due()) is not None:
            out.append(due)
            closer.take(due)
        out.append(token)
        closer.take(token)
    pieces = (vocabulary.name(t).encode() or vocabulary.piece(t) for t in out)
    return b"".join(pieces).decode()


@given(
    thought=st.text("ab<", max_size=9),
    budget=st.integers(0, 12),
    opens=st.booleans(),
    controls=st.sampled_from([(), CONTROLS]),
)
def test_a_thought_has_at_most_its_tokens_and_one_end(
    thought: str, budget: int, opens: bool, controls: tuple[str, ...]
) -> None:
    start = "" if opens else "<think>"
    text = closed(
        f"{start}{thought}</think>answer", ThoughtLimit(budget, "</think>", start), controls
    )
    n_end = 1 if controls else len("</think>")
    if len(thought) + n_end <= budget:
        assert text == f"{start}{thought}</think>answer"
    else:
        inside, end, _ = text.removeprefix(start).partition("</think>")
        assert end and (thought + "</think>").startswith(inside)
        assert len(inside) <= budget


def test_what_begins_otherwise_is_no_thought() -> None:
    limit = ThoughtLimit(1, "</think>", "<think>")
    assert closed("<thing> and <think>", limit) == "<thing> and <think>"
    assert closed("\n <think>abc", limit) == "\n <think>a</think>bc"


def test_an_end_that_the_model_wrote_is_enough() -> None:
    assert closed("a</think>bcdefghijkl", ThoughtLimit(9, "</think>")) == "a</think>bcdefghijkl"


def test_a_piece_of_text_says_of_how_many_tokens_it_was_made() -> None:
    driver = Driver(FakeBackend(next_token=spelling("aé😀", len(PROMPT))))
    sink = driver.submit(PROMPT, 20)
    driver.run()
    deltas = [event for event in sink.events if isinstance(event, TextDelta)]
    assert [(d.text, d.n_tokens) for d in deltas] == [("a", 1), ("é", 2), ("😀", 4)]


def test_control_tokens_have_text_only_where_they_are_to_be_seen() -> None:
    def text(visible: frozenset[int]) -> str:
        said = [97, 258, 98, 256]
        backend = FakeBackend(next_token=lambda tokens: said[len(tokens) - len(PROMPT)])
        driver = Driver(backend)
        sink = driver.submit(PROMPT, 20, visible_tokens=visible)
        driver.run()
        return sink.text

    assert text(frozenset()) == "ab"
    assert text(frozenset({258})) == "a<|control|>b"
    assert GenerationRequest([1]).visible_tokens == frozenset()
