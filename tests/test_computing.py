"""Batches that fit, and decodes that fail."""

from __future__ import annotations

from typing import Any

import pytest
from driver import GREEDY, Driver, expected, together
from fakes import FakeBackend

from openai_local.engine import Failed, Finished, GenerationRequest, StepFailed, TextDelta
from openai_local.engine.backend import ABORTED, NO_PLACE


@pytest.mark.parametrize("n_batch", [4, 15])
def test_no_batch_is_larger_than_the_backend_takes_however_small_that_is(n_batch: int) -> None:
    driver = Driver(FakeBackend(n_slots=2, n_batch=n_batch))
    sinks = [driver.submit(list(range(i, i + 16))) for i in range(3)]
    driver.run()
    assert [sink.text for sink in sinks] == [expected(sink.request, 256) for sink in sinks]


def test_an_aborted_step_is_taken_again() -> None:
    n_calls = 0

    def faults(batch: Any) -> int:
        nonlocal n_calls
        n_calls += 1
        return ABORTED if n_calls % 3 == 0 else 0

    for n_drop_max in (None, 0):
        driver = Driver(FakeBackend(faults=faults, n_drop_max=n_drop_max))
        sinks = together(driver, [GenerationRequest([97 + i] * 5, 10, GREEDY) for i in range(3)])
        assert [sink.text for sink in sinks] == [expected(s.request, 256) for s in sinks]


@pytest.mark.parametrize("code", [NO_PLACE, ABORTED, -1, -2, -3, 99])
def test_a_code_that_never_goes_away_fails_the_work_and_not_the_engine(code: int) -> None:
    broken = True
    driver = Driver(FakeBackend(faults=lambda batch: code if broken else 0))
    sinks = together(driver, [GenerationRequest([97 + i] * 5, 10, GREEDY) for i in range(3)])
    assert all(isinstance(sink.events[-1].error, StepFailed) for sink in sinks)
    broken = False
    later = driver.submit([97], 3)
    driver.run()
    assert later.text == expected(later.request, 256)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_decode_made_is_delivered_while_the_next_one_runs_where_that_is_free(
    asynchronous: bool,
) -> None:
    backend = FakeBackend(n_batch=16, asynchronous=asynchronous)
    driver = Driver(backend)
    during: list[tuple[bool, list[type]]] = []
    deliver = driver.core._deliveries._deliver

    def watch(events: list[Any]) -> list[Any]:
        during.append((backend._started is not None, [type(event) for _, event in events]))
        return deliver(events)

    driver.core._deliveries._deliver = watch
    sink = driver.submit([97 + i % 26 for i in range(40)], 4, progress=True)
    driver.run()
    assert sink.text == expected(sink.request, 256)
    *before, (last_during, last) = during
    # After the last one there is nothing to wait for.
    assert (last_during, last[-1]) == (False, Finished)
    assert {running for running, _ in before} == {asynchronous}
    assert [kind for _, kinds in before for kind in kinds].count(TextDelta) >= 3


def test_a_client_that_left_while_a_decode_ran_leaves_its_slot_as_the_decode_made_it() -> None:
    for n_drop_max in (None, 0, 16):
        backend = FakeBackend(n_slots=2, n_drop_max=n_drop_max, asynchronous=True)
        driver = Driver(backend)
        leaving, staying = driver.submit([97] * 40, 90), driver.submit([98] * 40, 90)
        while len(leaving.text) < 5:
            driver.step()
        leaving.gone = True
        driver.step()
        assert driver.core.metrics().sequences_running == 1
        driver.step()  # delivers its last token
        goes_on = driver.submit([97] * 40 + [*leaving.text.encode()], 5)
        driver.run()
        assert staying.text == expected(staying.request, 256)
        assert goes_on.text == expected(goes_on.request, 256)
        # All but the last token, which was never computed.
        assert goes_on.events[-1].usage.n_cached == 39 + len(leaving.text)
        driver.check_nothing_is_left()


def test_a_delivery_that_breaks_while_a_decode_runs_ends_the_engine_and_answers_all() -> None:
    driver = Driver(FakeBackend(asynchronous=True))
    sink = driver.submit([97] * 4, 90)
    deliver = driver.core._deliveries._deliver

    def break_down(events: Any) -> list[Any]:
        raise RuntimeError("a mistake")

    driver.core._deliveries._deliver = break_down
    with pytest.raises(RuntimeError):
        driver.run()
    driver.core._deliveries._deliver = deliver
    driver.core.close([])
    assert isinstance(sink.events[-1], Failed) and driver.backend.closed
