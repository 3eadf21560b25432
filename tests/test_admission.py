"""Who gets a slot, who gives up cells, and that nobody's text shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from driver import GREEDY, Driver, expected, together
from fakes import FakeBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Machine, machines, options, told, undisturbed

from openai_local.engine import Constraint, GenerationRequest, admission
from openai_local.engine.constraints.compiler import ConstraintCompiler
from openai_local.engine.intake import Cancel


def test_more_requests_than_slots_are_served_in_arrival_order() -> None:
    driver = Driver(FakeBackend(n_slots=2))
    ends: list[int] = []
    sinks = [driver.submit([97 + i], 3) for i in range(8)]
    for _ in range(200):
        driver.core.step([])
        ends += [i for i, sink in enumerate(sinks) if sink.ended and i not in ends]
    assert ends == sorted(ends)
    assert len(ends) == 8


def test_the_running_slots_become_contiguous_again_after_ends() -> None:
    driver = Driver(FakeBackend(n_ctx=512, n_slots=8))
    sinks = [driver.submit([97 + i], 5 if i % 2 else 100) for i in range(8)]
    while not all(sink.ended for sink in sinks[1::2]):
        driver.core.step([])
    for _ in range(50):
        driver.core.step([])
    assert list(driver.backend.batches[-1].slots) == [0, 1, 2, 3]
    driver.run()
    assert [sink.text for sink in sinks] == [expected(sink.request, 512) for sink in sinks]


def test_a_prompt_that_is_moved_into_a_gap_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "GAP_STEPS", 1)
    driver = Driver(FakeBackend(n_batch=16))
    streams = [driver.submit([97 + i], 30) for i in range(3)]
    while not all(sink.text for sink in streams):
        driver.core.step([])
    long = driver.submit([104] * 200, 5)
    driver.core.step([Cancel(streams[1])])
    assert not long.text
    driver.run()
    for sink in (streams[0], streams[2], long):
        assert sink.text == expected(sink.request, 256)


def test_when_cells_run_out_the_youngest_makes_room_and_goes_on_as_if_nothing_had_been() -> None:
    backend = FakeBackend(n_ctx=256, n_slots=4, n_cells=256)
    driver = Driver(backend)
    sinks = [driver.submit([97 + i] * 70, 100) for i in range(2)]
    driver.run()
    for sink in sinks:
        assert sink.text == expected(sink.request, 256)
        assert sink.events[-1].usage.n_cached == 0
    metrics = driver.core.metrics()
    assert metrics.preemptions_total == 1
    # Its own, and later that of the other, which had ended.
    assert metrics.states_saved_total == 2
    # What it had computed came back; only the token that was sampled last was left to do.
    assert metrics.prompt_tokens_computed_total == 2 * 70 + 1
    assert [len(sink.events) for sink in sinks] == [101, 101]


def test_without_ram_a_preempted_sequence_is_computed_again() -> None:
    driver = Driver(FakeBackend(n_ctx=256, n_slots=4, n_cells=256), cache_ram=0)
    sinks = [driver.submit([97 + i] * 70, 100) for i in range(2)]
    driver.run()
    assert [sink.text for sink in sinks] == [expected(sink.request, 256) for sink in sinks]
    metrics = driver.core.metrics()
    assert (metrics.preemptions_total, metrics.states_saved_total) == (1, 0)
    assert metrics.prompt_tokens_computed_total > 2 * 70 + 40


def test_the_lowest_priority_is_preempted_even_if_it_is_older() -> None:
    driver = Driver(FakeBackend(n_ctx=256, n_slots=4, n_cells=256))
    flex = driver.submit([97] * 70, 100, priority=-1)
    default = driver.submit([98] * 70, 100)
    for _ in range(1000):
        driver.core.step([])
        if default.ended:
            break
    assert default.ended and not flex.ended
    driver.run()
    assert flex.text == expected(flex.request, 256)


def test_nobody_is_admitted_to_a_pool_that_has_no_room_for_its_prompt() -> None:
    driver = Driver(FakeBackend(n_ctx=256, n_slots=4, n_cells=256))
    sinks = together(driver, [GenerationRequest([97 + i] * 150, 20, GREEDY) for i in range(3)])
    assert [sink.text for sink in sinks] == [expected(sink.request, 256) for sink in sinks]
    assert driver.core.metrics().preemptions_total == 0


def test_a_run_of_forced_tokens_has_its_room_before_others_are_admitted() -> None:
    driver = Driver(FakeBackend(n_ctx=128, n_slots=4, n_cells=128))
    compiler = ConstraintCompiler(driver.backend.vocabulary)
    bound = compiler.compile(Constraint("regex", "x{60}[a-z]{20}"))
    first = driver.submit([97], None, constraint=bound)
    assert len(first.text) == 60
    second = driver.submit([98] * 60, 20)
    driver.run()
    assert (len(first.text), second.text) == (80, expected(second.request, 128))
    assert driver.core.metrics().preemptions_total == 0


crowds = st.lists(
    st.tuples(st.integers(97, 99), st.integers(1, 20), st.one_of(st.just({}), options)),
    min_size=3,
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(crowds, machines, st.sampled_from([128, 140, 170]), st.integers(3, 5))
def test_each_of_a_crowd_in_a_small_pool_gets_what_it_gets_alone(
    crowd: list[Any], machine: Machine, n_cells: int, n_slots: int
) -> None:
    requests = [
        GenerationRequest([letter] * n, 60 + n, **{"sampling": GREEDY, **asked})
        for letter, n, asked in crowd
    ]
    with replace(machine, n_cells=n_cells, n_slots=n_slots).driver() as driver:
        sinks = together(driver, requests)
        driver.check_nothing_is_left()
    for sink in sinks:
        whole = undisturbed(sink.request)
        assert (sink.text, told(sink)) == (whole.text, told(whole))
        end, other = sink.events[-1], whole.events[-1]
        assert (end.reason, end.logprob) == (other.reason, other.logprob)
