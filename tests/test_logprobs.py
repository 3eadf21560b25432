"""Log-probabilities: their values, and with which text each token is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from driver import GREEDY, Driver, Sink
from fakes import BOS, CONTROL, EOG, FakeBackend, FakeVocabulary, spelling
from hypothesis import given
from hypothesis import strategies as st

from openai_local.engine import (
    Finished,
    GenerationRequest,
    PromptLogprobs,
    SamplingParams,
    TextDelta,
    TokenLogprob,
)
from openai_local.engine.backend import ABORTED, Batch
from openai_local.engine.intake import Submit
from openai_local.engine.logprobs import BLOCK, LOWEST, LogprobReader, LogprobTrail
from openai_local.engine.text import Detokenizer

PROMPT = list(b"once upon")


class Vocabulary(FakeVocabulary):
    """As many tokens as it takes."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens


@given(
    n_vocab=st.sampled_from([1, 7, BLOCK, BLOCK + 1, 30 * BLOCK - 3]),
    n_top=st.sampled_from([0, 1, 5, 20, 40]),
    spread=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 2**32),
)
def test_values_are_the_log_softmax_and_alternatives_the_likeliest(
    n_vocab: int, n_top: int, spread: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(3, spread, n_vocab).astype(np.float32)
    reader = LogprobReader(Vocabulary(n_vocab))
    reader.hold(logits)
    token = seed % n_vocab
    entry = reader.of(token, n_top)
    wide = logits.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    assert entry.token == token
    assert entry.logprob == pytest.approx(max(expected[token], LOWEST), abs=1e-4)
    told = [other.logprob for other in entry.top]
    assert told == pytest.approx(sorted(expected, reverse=True)[:n_top], abs=1e-4)
    assert [logits[other.token] for other in entry.top] == sorted(logits, reverse=True)[:n_top]


def test_what_cannot_come_has_a_value_that_json_can_write() -> None:
    reader = LogprobReader(Vocabulary(3))
    reader.hold(np.array([0, -np.inf, -1e30], np.float32))
    assert [reader.of(token, 0).logprob for token in range(3)] == [0, LOWEST, LOWEST]


def deltas(sink: Sink) -> list[tuple[str, str]]:
    return [
        (event.text, b"".join(entry.piece for entry in event.logprobs).decode())
        for event in sink.events
        if isinstance(event, TextDelta)
    ]


def ask(text: str, n_top: int | None = 0, **fields: Any) -> Sink:
    driver = Driver(FakeBackend(next_token=spelling(text, len(PROMPT))))
    sink = driver.submit(PROMPT, fields.pop("max_tokens", 50), logprobs=n_top, **fields)
    driver.run()
    driver.check_nothing_is_left()
    return sink


def test_a_token_goes_with_the_text_that_it_completes() -> None:
    assert deltas(ask("a€b𝄞")) == [("a", "a"), ("€", "€"), ("b", "b"), ("𝄞", "𝄞")]


def test_tokens_of_held_text_are_held_and_those_of_a_stop_string_left_out() -> None:
    sink = ask("one. two. three.", stop=(". th",))
    assert deltas(sink) == [
        ("o", "o"), ("n", "n"), ("e", "e"), (". tw", ". tw"), ("o", "o"),
    ]  # fmt: skip


def test_a_token_that_a_stop_string_cuts_is_told_and_those_after_it_are_not() -> None:
    text, trail = Detokenizer(("stop",)), LogprobTrail(0)
    told: list[bytes] = []
    for i, piece in enumerate((b"he", b"llo st", b"op now")):
        start = text.n_decoded
        text.feed(piece)
        trail.add(TokenLogprob(i, piece, "", -1.0), start, text)
        told += [e.piece for e in trail.release(text, ended=text.stopped)]
    assert told == [b"he", b"llo st"]


@given(
    pieces=st.lists(st.binary(max_size=4) | st.text("ab€𝄞", max_size=3).map(str.encode)),
    stop=st.lists(st.text("ab€", min_size=1, max_size=3), max_size=2),
)
def test_the_tokens_that_are_told_cover_the_text_and_no_more(
    pieces: list[bytes], stop: list[str]
) -> None:
    text, trail = Detokenizer(tuple(stop)), LogprobTrail(0)
    out, told = "", []
    for i, piece in enumerate(pieces):
        start = text.n_decoded
        out += text.feed(piece)
        trail.add(TokenLogprob(i, piece, "", -1.0), start, text)
        told += trail.release(text, ended=text.stopped)
        assert [entry.token for entry in told] == list(range(len(told)))
        known = b"".join(entry.piece for entry in told)
        if not text.stopped:
            # No token is told before its text is out, and none later than the text.
            assert len(known.decode("utf-8", "replace")) <= len(out) + 1
        else:
            break
    if not text.stopped:
        out += text.finish()
        told += trail.release(text, ended=True)
    known = b"".join(entry.piece for entry in told)
    assert known.decode("utf-8", "replace").startswith(out)
    if not text.stopped:
        assert len(told) == len(pieces)
    elif told:
        shorter = b"".join(entry.piece for entry in told[:-1]).decode("utf-8", "ignore")
        assert len(shorter) <= len(out)


def test_the_end_is_counted_and_not_told() -> None:
    sink = ask("ab", 2)
    told = [entry for e in sink.events if isinstance(e, TextDelta) for entry in e.logprobs]
    assert [entry.piece for entry in told] == [b"a", b"b"]
    assert [[other.token for other in entry.top][0] for entry in told] == [97, 98]
    assert all(len(entry.top) == 2 for entry in told)
    end = sink.events[-1]
    assert isinstance(end, Finished) and end.usage.n_completion == 3
    one = told[0].logprob
    assert one is not None and end.logprob == pytest.approx(3 * one)


def test_values_are_before_bias_penalties_and_temperature() -> None:
    plain = ask("ab", 1)
    tricks = SamplingParams(
        temperature=0, logit_bias={97: 5.0, 98: 5.0}, presence_penalty=1, repeat_penalty=2.0
    )
    assert plain.events[:2] == ask("ab", 1, sampling=tricks).events[:2]


def test_nothing_is_told_unasked() -> None:
    sink = ask("ab", None)
    assert [e for e in sink.events if isinstance(e, TextDelta)] == [TextDelta("a"), TextDelta("b")]
    assert sink.events[-1].logprob is None


def prompt_logprobs(sink: Sink) -> PromptLogprobs:
    (found,) = [event for event in sink.events if isinstance(event, PromptLogprobs)]
    return found


@pytest.mark.parametrize("n_rows_max", [1, 3, 1000])
def test_a_prompts_logprobs_have_it_computed_in_full_in_bounded_pieces(n_rows_max: int) -> None:
    backend = FakeBackend(n_batch=16)
    driver = Driver(backend)
    prompt = [97 + i % 26 for i in range(60)]
    driver.submit(prompt, 2)
    driver.run()
    driver.core._computing._n_rows_max = n_rows_max
    backend.batches.clear()
    sinks = [
        driver.submit(prompt, 2, logprobs=1, prompt_logprobs=True),
        driver.submit(prompt[:40], 2, logprobs=1, prompt_logprobs=True),
        driver.submit(prompt, 2),
    ]
    driver.run()
    driver.check_nothing_is_left()
    others = 2  # decodes, or the last token of the third prompt
    assert max(int(b.outputs.sum()) for b in backend.batches) <= n_rows_max + others
    for sink, tokens in zip(sinks[:2], (prompt, prompt[:40]), strict=True):
        told = prompt_logprobs(sink)
        assert [entry.token for entry in told.tokens] == tokens
        assert told.tokens[0].logprob is None
        for i, entry in enumerate(told.tokens[1:], 1):
            row = np.zeros(backend.info.n_vocab)
            row[backend._next_token(tokens[:i])] = 10
            assert entry.logprob == pytest.approx(row[tokens[i]] - np.log(np.exp(row).sum()))
            assert [other.token for other in entry.top] == [backend._next_token(tokens[:i])]
        assert sink.events.index(told) == 0
        assert sink.events[-1].usage.n_cached == 0
    assert sinks[0].text == sinks[2].text
    assert sinks[2].events[-1].usage.n_cached > 0


def test_a_prompts_logprobs_alone_need_no_completion() -> None:
    sink = ask("ab", 0, prompt_logprobs=True, max_tokens=0)
    told, end = sink.events
    assert len(told.tokens) == len(PROMPT)
    assert (end.reason, end.usage.n_completion, sink.text) == ("length", 0, "")
    one = Driver(FakeBackend())
    alone = one.submit([97], 0, logprobs=3, prompt_logprobs=True)
    one.run()
    assert [entry.logprob for entry in prompt_logprobs(alone).tokens] == [None]


def test_a_prompts_logprobs_outlive_a_preemption_and_others_that_decode_meanwhile() -> None:
    backend = FakeBackend(n_ctx=64, n_slots=3, n_cells=80, n_batch=16)
    driver = Driver(backend)
    requests = [
        GenerationRequest([97 + i] * 20, 25, GREEDY, logprobs=0, prompt_logprobs=i != 1)
        for i in range(3)
    ]
    sinks = [Sink(request) for request in requests]
    driver.run([Submit(sink, sink.request) for sink in sinks])
    driver.check_nothing_is_left()
    assert driver.core.metrics().preemptions_total > 0
    for i in (0, 2):
        tokens = prompt_logprobs(sinks[i]).tokens
        assert [entry.token for entry in tokens] == [97 + i] * 20
        alone = Driver(FakeBackend())
        undisturbed = alone.submit([97 + i] * 20, 25, logprobs=0, prompt_logprobs=True)
        alone.run()
        assert undisturbed.text == sinks[i].text
        assert prompt_logprobs(undisturbed).tokens == tokens


def test_a_prompt_that_is_computed_again_after_an_aborted_step_is_read_once() -> None:
    aborted: list[int] = []

    def once(batch: Batch) -> int:
        if batch.positions[0] == 32 and not aborted:
            aborted.append(1)
            return ABORTED
        return 0

    prompt = [97 + i % 26 for i in range(60)]
    # Nothing can be dropped, so the slot is emptied and all is computed again.
    driver = Driver(FakeBackend(n_batch=32, n_drop_max=0, faults=once))
    sink = driver.submit(prompt, 2, logprobs=0, prompt_logprobs=True)
    driver.run()
    assert aborted
    assert [entry.token for entry in prompt_logprobs(sink).tokens] == prompt


def test_control_tokens_have_a_name_and_no_bytes() -> None:
    driver = Driver(FakeBackend())
    sink = driver.submit([BOS, CONTROL, 97], 0, logprobs=0, prompt_logprobs=True)
    driver.run()
    told = [(entry.name, entry.piece) for entry in prompt_logprobs(sink).tokens]
    assert told == [("<|begin|>", b""), ("<|control|>", b""), ("", b"a")]
    assert FakeVocabulary().name(EOG) == "<|end|>"
