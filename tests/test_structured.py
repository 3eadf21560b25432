"""Constrained generations over the fake backend: whatever the model wants, the text is right."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from driver import GREEDY, Driver, Sink
from fakes import EOG, FakeBackend, fake_engine, letters, spelling
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from machines import Machine, machines
from structured import accepts
from test_constraints import schemas

from openai_local.engine import (
    Constraint,
    Failed,
    Finished,
    GenerationRequest,
    InvalidConstraint,
    InvalidRequest,
    SamplingParams,
    StepFailed,
)
from openai_local.engine.constraints.compiler import Compiled, ConstraintCompiler
from openai_local.engine.constraints.guide import Guide

PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "city": {"enum": ["Paris", "Rome"]},
    },
    "required": ["first_name", "age", "city"],
    "additionalProperties": False,
}


def anything(tokens: Sequence[int]) -> int:
    """Any byte, and the end now and then."""
    return zlib.crc32(np.asarray(tokens, np.int32).tobytes()) % (EOG + 1)


def bind(driver: Driver, kind: Any, text: Any, **kwargs: str) -> Compiled:
    text = text if isinstance(text, str) else json.dumps(text)
    compiler = ConstraintCompiler(driver.backend.vocabulary)
    return compiler.compile(Constraint(kind, text, **kwargs))


def generate(
    kind: Any, text: Any, n: int | None = 200, next_token: Any = letters, **kwargs: Any
) -> Sink:
    driver = Driver(FakeBackend(next_token=next_token, n_ctx=512))
    sink = driver.submit([97], n, constraint=bind(driver, kind, text), **kwargs)
    driver.run()
    driver.check_nothing_is_left()
    return sink


def end(sink: Sink) -> Finished:
    assert isinstance(sink.events[-1], Finished), sink.events
    return sink.events[-1]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.filter_too_much])
@given(schemas, st.sampled_from([letters, anything]), st.integers(0, 2**20))
def test_whatever_the_model_wants_the_text_parses_and_satisfies_the_schema(
    schema: dict[str, Any], next_token: Any, seed: int
) -> None:
    driver = Driver(FakeBackend(next_token=next_token, n_ctx=300))
    try:
        constraint = bind(driver, "json_schema", schema)
    except InvalidConstraint:
        assume(False)
    prompt = [97 + seed % 20, 98 + seed % 7]
    sink = driver.submit(prompt, None, constraint=constraint, sampling=SamplingParams(seed=seed))
    driver.run()
    if end(sink).reason == "length":  # some schemas can be satisfied at any length
        assert end(sink).usage.n_completion == 298
        return
    value = json.loads(sink.text)
    jsonschema.Draft202012Validator(schema).validate(value)
    assert accepts(constraint, sink.text)


def test_forced_tokens_are_appended_without_being_sampled_and_count_as_all_do() -> None:
    backend = FakeBackend()
    driver = Driver(backend)
    sink = driver.submit([97], 200, constraint=bind(driver, "json_schema", PERSON))
    driver.run()
    person = json.loads(sink.text)
    assert list(person) == ["first_name", "age", "city"]
    assert end(sink).reason == "stop"
    assert end(sink).usage.n_completion == len(sink.text)
    metrics = driver.core.metrics()
    assert metrics.completion_tokens_total == len(sink.text)
    assert metrics.completion_tokens_forced_total > len('"first_name": , "age": , "city": ')
    assert metrics.prompt_tokens_computed_total == 1
    # Only what was sampled had its logits computed.
    n_outputs = sum(int(batch.outputs.sum()) for batch in backend.batches)
    assert n_outputs == metrics.completion_tokens_total - metrics.completion_tokens_forced_total
    # Alone, a run of forced tokens is one call.
    assert len(backend.batches) <= n_outputs * 2


def test_a_generation_ends_with_stop_when_nothing_can_follow() -> None:
    sink = generate("choice", ["yes", "no"], next_token=spelling("yes indeed", 1))
    assert sink.text == "yes"
    assert end(sink).reason == "stop"
    assert end(sink).usage.n_completion == 3


def test_the_end_is_the_models_where_more_may_follow() -> None:
    assert generate("regex", "[a-z]+", next_token=spelling("abc", 1)).text == "abc"
    sink = generate("regex", "[a-z]+", 5)
    assert (len(sink.text), end(sink).reason) == (5, "length")


def test_max_tokens_ends_a_forced_run_with_length_and_a_complete_text_with_stop() -> None:
    for n in range(1, 8):
        sink = generate("choice", ["forced"], n)
        assert sink.text == "forced"[:n]
        assert end(sink).reason == ("length" if n < 6 else "stop")
        assert end(sink).usage.n_completion == min(n, 6)


def test_the_context_bounds_a_forced_run() -> None:
    driver = Driver(FakeBackend(n_ctx=8))
    sink = driver.submit([97] * 4, None, constraint=bind(driver, "choice", ["forced"]))
    driver.run()
    assert (sink.text, end(sink).reason) == ("forc", "length")


def test_a_stop_string_ends_within_a_forced_run() -> None:
    sink = generate("choice", ["forced"], stop=("rc",))
    assert (sink.text, end(sink).reason) == ("fo", "stop")
    assert end(sink).usage.n_completion == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_cannot_allow_what_a_constraint_forbids(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, logit_bias={ord("z"): 100.0}, seed=3)
    sink = generate("regex", "[a-f]{8}", sampling=sampling)
    assert len(sink.text) == 8
    assert set(sink.text) <= set("abcdef")
    sampling = SamplingParams(temperature=temperature, logit_bias={ord("c"): 100.0}, seed=0)
    assert generate("regex", "[a-f]{8}", sampling=sampling).text == "c" * 8


def test_a_constraint_has_the_last_word_where_all_that_it_allows_is_forbidden() -> None:
    sampling = SamplingParams(temperature=0, logit_bias={ord("a"): -np.inf, ord("b"): -np.inf})
    sink = generate("regex", "[ab]{3}", sampling=sampling)
    assert len(sink.text) == 3 and set(sink.text) <= set("ab")


def test_forced_tokens_are_penalised_as_sampled_ones_are() -> None:
    # After "aaaa", "b" is likelier by a little than "a" is, if that was counted.
    sampling = SamplingParams(temperature=0, frequency_penalty=2.0)
    sink = generate("regex", "aaaa[ab]", next_token=lambda tokens: ord("a"), sampling=sampling)
    assert sink.text == "aaaaa"
    sampling = SamplingParams(temperature=0, frequency_penalty=3.0)
    sink = generate("regex", "aaaa[ab]", next_token=lambda tokens: ord("a"), sampling=sampling)
    assert sink.text == "aaaab"


def test_ignore_eos_goes_on_as_long_as_the_constraint_can() -> None:
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    sink = generate("regex", "[a-z]{2,5}", next_token=spelling("ab", 1), sampling=sampling)
    assert len(sink.text) == 5
    assert end(sink).reason == "stop"


def test_a_matcher_that_fails_fails_its_generation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(FakeBackend())
    first = driver.submit([97], 20, constraint=bind(driver, "regex", "[a-z]+"))
    other = driver.submit([98], 20)
    sequence = driver.core._deliveries.of(first)
    assert sequence is not None
    guide = sequence.sampler._guide
    assert isinstance(guide, Guide)
    assert not guide._matcher.consume_token(ord("1"))  # what the grammar cannot take
    driver.run()
    assert isinstance(first.events[-1], Failed)
    assert isinstance(first.events[-1].error, StepFailed)
    assert "constraint" in str(first.events[-1].error)
    assert end(other).usage.n_completion == 20
    driver.check_nothing_is_left()


@settings(deadline=None, max_examples=40)
@given(machines, st.lists(st.tuples(st.integers(97, 105), st.booleans()), min_size=1, max_size=8))
def test_neighbours_preemption_and_reuse_change_no_constrained_text(
    machine: Machine, requests: list[tuple[int, bool]]
) -> None:
    def run(driver: Driver, wanted: list[tuple[int, bool]]) -> list[str]:
        bound = bind(driver, "json_schema", PERSON)
        sinks = [
            driver.submit([letter, 99] * 9, 90, constraint=bound if constrained else None)
            for letter, constrained in wanted
        ]
        driver.run()
        driver.check_nothing_is_left()
        return [sink.text for sink in sinks]

    with machine.driver() as driver:
        together = run(driver, requests)
    alone = [run(Driver(FakeBackend(n_ctx=128)), [request])[0] for request in requests]
    assert together == alone
    for text, (_, constrained) in zip(together, requests, strict=True):
        if constrained:
            jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("step", ["</think>", "</think>\n\n", "</think> "])
def test_a_constraint_that_waits_for_a_marker_holds_from_there(step: str) -> None:
    def next_token(tokens: Sequence[int]) -> int:
        return spelling(f"I think{step}yes, of course", 1)(tokens)

    driver = Driver(FakeBackend(next_token=next_token))
    bound = bind(driver, "choice", ["yes", "no"], after="</think>")
    sink = driver.submit([97], 100, constraint=bound)
    driver.run()
    assert sink.text.split("</think>")[1].strip() == "yes"
    assert sink.text.startswith(f"I think{step}")
    assert end(sink).reason == "stop"


def test_a_free_part_does_not_end_the_text_and_is_bounded_by_max_tokens() -> None:
    driver = Driver(FakeBackend(next_token=spelling("I th", 1)))
    bound = bind(driver, "choice", ["yes"], after="</think>")
    sink = driver.submit([97], 30, constraint=bound)
    driver.run()
    assert sink.text.startswith("I th")
    assert end(sink).reason == "length"
    assert end(sink).usage.n_completion == 30


def test_a_free_part_that_may_be_opened_is_free_only_if_it_is() -> None:
    def text(wanted: str) -> str:
        driver = Driver(FakeBackend(next_token=spelling(wanted, 1)))
        bound = bind(driver, "choice", ["yes", "no"], after="</think>", opening="<think>")
        sink = driver.submit([97], 60, constraint=bound)
        driver.run()
        assert end(sink).reason == "stop"
        return sink.text

    assert text("<think>hm</think>no") == "<think>hm</think>no"
    assert text("<thxxxhm</think>no") == "<think>m</think>no"
    assert text("yes, I think") == "yes"


def test_a_marker_that_is_one_control_token_is_seen() -> None:
    def next_token(tokens: Sequence[int]) -> int:
        plan = [*b"hm", 258, *b"yes"]
        return plan[len(tokens) - 1] if len(tokens) <= len(plan) else EOG

    driver = Driver(FakeBackend(next_token=next_token))
    bound = bind(driver, "choice", ["yes", "no"], after="<|control|>")
    sink = driver.submit([97], 60, constraint=bound)
    driver.run()
    assert (sink.text, end(sink).reason) == ("hmyes", "stop")


@pytest.mark.anyio
async def test_an_engine_takes_what_it_compiled_itself() -> None:
    constraint = Constraint("choice", '["yes"]')
    async with fake_engine() as engine, fake_engine() as other:
        bound = engine.compile(constraint)
        assert engine.compile(constraint) is bound
        request = GenerationRequest([97], 9, GREEDY, constraint=bound)
        events = [event async for event in engine.submit(request)]
        assert "".join(event.text for event in events[:-1]) == "yes"  # type: ignore[union-attr]
        with pytest.raises(InvalidRequest, match="not compiled by this engine"):
            other.submit(request)
