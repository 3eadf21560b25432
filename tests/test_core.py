"""The engine's steps: whatever comes and goes, everybody gets the text that is theirs."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from driver import GREEDY, Driver, Sink, expected, together
from fakes import FakeBackend
from hypothesis import example, given, settings
from hypothesis import strategies as st
from machines import Machine, check_is_begun, machines, operations, play, told, undisturbed

from openai_local.engine import (
    DeadlineExceeded,
    EngineStopped,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
    StepFailed,
)
from openai_local.engine.embedder import EmbeddingJob
from openai_local.engine.intake import Cancel, Submit


@settings(max_examples=150, deadline=None)
@given(operations, machines)
# A state is to be loaded into a slot from which another placement of the step still copies.
@example(
    [
        ("submit", [97], 0),
        ("submit", [97], 0),
        ("submit", [98, 99] * 18 + [97], 30),
        ("submit", [97], 0),
        ("submit", [97, 99] * 5 + [97, 98], 4),
        ("submit", [97, 99] * 4 + [97], 1),
        ("submit", [97], 3),
        ("submit", [98, 99] * 4 + [97], 1),
        ("leave", 2, 0),
        ("submit", [97], 0),
        ("restart", 0, 0),
    ],
    Machine(3, 16, None, None, cache_ram=1000, n_files=2, bad_states=frozenset(), gap_steps=1),
)
def test_arbitrary_arrivals_and_cancellations_change_nobodys_text(
    steps: list[Any], machine: Machine
) -> None:
    with machine.driver() as driver:
        sinks, jobs = play(driver, steps)
        driver.check_nothing_is_left()
        metrics = driver.core.metrics()
    for sink in sinks:
        whole = undisturbed(sink.request)
        check_is_begun(sink, whole)
        if sink.disturbed:
            assert sink.ended or sink.cancelled or sink.gone
            if sink.ended_early:
                assert isinstance(sink.events[-1].error, sink.ended_early)
        else:
            assert (sink.text, told(sink)) == (whole.text, told(whole))
            end, other = sink.events[-1], whole.events[-1]
            assert isinstance(end, Finished) and end.reason == other.reason
            assert (end.logprob, end.usage.n_completion) == (
                other.logprob,
                other.usage.n_completion,
            )
            assert end.usage.n_prompt == len(sink.request.prompt_tokens)
            assert 0 <= end.usage.n_cached < end.usage.n_prompt
            if not sink.request.reuse or sink.request.prompt_logprobs:
                assert end.usage.n_cached == 0
    if not any(sink.disturbed for sink in sinks):
        n_cached = sum(sink.events[-1].usage.n_cached for sink in sinks)
        assert metrics.prompt_tokens_reused_total + driver.n_reused == n_cached
    assert metrics.prompt_tokens_reused_slot_total >= 0
    restarted = any(what == "restart" for what, _, _ in steps)
    for job in jobs:
        if not (restarted and isinstance(job.future.exception(0), EngineStopped)):
            assert np.allclose(np.linalg.norm(job.future.result(0), axis=1), 1)


@settings(max_examples=100, deadline=None)
@given(
    operations,
    machines,
    st.dictionaries(st.integers(0, 60), st.sampled_from([1, 2, -1, -2, -3]), max_size=8),
)
def test_a_failing_step_fails_what_was_in_it_or_nothing_and_the_rest_goes_on(
    steps: list[Any], machine: Machine, failing: dict[int, int]
) -> None:
    calls = 0
    lost: set[int] = set()

    def faults(batch: Any) -> int:
        nonlocal calls
        calls += 1
        code = failing.get(calls, 0)
        if code < 0:
            lost.update(
                id(s.sink) for s in driver.core._scheduler.sequences() if s.slot in batch.slots
            )
        return code

    with machine.driver(faults) as driver:
        sinks, _ = play(driver, steps)
        driver.check_nothing_is_left()
    for sink in sinks:
        whole = undisturbed(sink.request)
        check_is_begun(sink, whole)
        assert sink.ended or sink.cancelled or sink.gone
        if sink.disturbed:
            continue
        if isinstance(sink.events[-1], Failed):
            assert isinstance(sink.events[-1].error, StepFailed)
            assert id(sink) in lost or set(failing.values()) & {1, 2}
        else:
            assert (sink.text, told(sink)) == (whole.text, told(whole))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20))
def test_closing_answers_everybody_and_frees_the_backend(n: int) -> None:
    driver = Driver(FakeBackend(n_ctx=128, n_slots=2))
    sinks = [driver.submit([97] * (i % 60 + 1), 10) for i in range(n)]
    late = Sink(GenerationRequest([97]))
    job = EmbeddingJob([[97]])
    driver.core.close([Submit(late, late.request), job])
    for sink in [*sinks, late]:
        assert sink.ended
    assert isinstance(late.events[-1].error, EngineStopped)
    with pytest.raises(EngineStopped):
        job.future.result(0)
    assert driver.backend.closed
    assert not driver.core._deliveries._by_sink


def test_every_step_gives_each_running_sequence_one_token_while_prompts_are_computed() -> None:
    driver = Driver(FakeBackend(n_ctx=4096, n_slots=4, n_batch=64), target_itl_ms=0.0)
    streaming = driver.submit([97], 100)
    while not streaming.text:
        driver.core.step([])
    long = driver.submit([98] * 1000, 4)
    before = len(streaming.text)
    for n in range(1, 11):
        driver.core.step([])
        assert len(streaming.text) == before + n
    assert not long.text
    driver.run()
    assert long.text == expected(long.request, 4096)


def test_a_cancelled_sequence_is_in_no_later_batch() -> None:
    driver = Driver(FakeBackend())
    staying, leaving = driver.submit([97], 50), driver.submit([98], 50)
    for _ in range(3):
        driver.core.step([])
    driver.core.step([Cancel(leaving)])
    assert all(len(batch) == 1 for batch in driver.backend.batches[-1:])
    driver.run()
    assert staying.text == expected(staying.request, 256)


def test_embeddings_go_on_beside_streams_and_a_cancelled_one_is_skipped() -> None:
    driver = Driver(FakeBackend(n_ctx=512))
    stream = driver.submit([97], 100)
    jobs = [EmbeddingJob([[i] * 20 for i in range(1, 7)]) for _ in range(3)]
    jobs[1].future.cancel()
    for job in jobs:
        driver.core.step([job])
    for _ in range(30):
        driver.core.step([])
    assert not stream.ended
    for job in (jobs[0], jobs[2]):
        vectors = job.future.result(0)
        assert vectors.shape == (6, 8)
        assert [int(row.argmax()) for row in vectors] == [1, 2, 3, 4, 5, 6]
    driver.run()


def test_an_input_that_must_be_whole_is_never_split() -> None:
    driver = Driver(FakeBackend(n_batch=16, whole_inputs=True))
    future: Future[Any] = Future()
    driver.run([EmbeddingJob([[1] * 60, [2] * 3, [3] * 50], future)])
    assert future.result(0).shape == (3, 8)


def test_a_request_that_cannot_be_taken_fails_alone() -> None:
    driver = Driver(FakeBackend())
    good, bad = (
        Sink(GenerationRequest([97], 3, GREEDY)),
        Sink(GenerationRequest([97], 3, SamplingParams(repeat_penalty=1.1, repeat_last_n=-2))),
    )
    driver.run([Submit(bad, bad.request), Submit(good, good.request)])
    assert isinstance(bad.events[-1], Failed)
    assert good.text == expected(good.request, 256)
    driver.check_nothing_is_left()


def test_what_takes_too_long_ends_with_a_reason_waiting_or_running() -> None:
    driver = Driver(FakeBackend(n_ctx=10**6, n_slots=1, step_s=0.01), request_timeout_s=0.1)
    running, waiting = together(driver, [GenerationRequest([97]), GenerationRequest([98])])
    for sink in (running, waiting):
        assert isinstance(sink.events[-1].error, DeadlineExceeded)
    assert running.text
    later = driver.submit([97], 3)
    driver.run()
    assert later.text == expected(later.request, 256)
    driver.check_nothing_is_left()


def test_the_histograms_count_what_happened() -> None:
    driver = Driver(FakeBackend(n_slots=2))
    together(driver, [GenerationRequest([97 + i] * 5, 10, GREEDY) for i in range(3)])
    metrics = driver.core.metrics()
    assert metrics.queue_seconds.count == metrics.first_token_seconds.count == 3
    assert metrics.request_seconds.count == 3
    assert metrics.inter_token_seconds.count == 3 * 9
    assert metrics.decode_batch_size.count == metrics.decode_steps_total
    assert metrics.decode_batch_size.total == 3 * 9
    assert metrics.cells_total == 2 * 256 and metrics.cells_used > 0
