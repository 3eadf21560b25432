"""Batches that fit, and decodes that fail."""

from __future__ import annotations

from typing import Any

import pytest
from driver import GREEDY, Driver, expected, together
from fakes import FakeBackend

from openai_local.engine import GenerationRequest, StepFailed
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
