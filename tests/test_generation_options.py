"""What a generation can be asked for besides its sampling: reuse, progress, timings, ends."""

from __future__ import annotations

import pytest
from driver import Driver, Sink
from fakes import EOG, FakeBackend, spelling

from openai_local.engine import (
    Failed,
    Finished,
    PromptProgress,
    SamplingParams,
    StepFailed,
    TextDelta,
)

PROMPT = [97 + i % 26 for i in range(70)]


def finished(sink: Sink) -> Finished:
    end = sink.events[-1]
    assert isinstance(end, Finished)
    return end


@pytest.mark.parametrize("n_drop_max", [None, 0])
def test_a_prompt_that_is_to_reuse_nothing_is_computed_in_full_and_reused_by_others(
    n_drop_max: int | None,
) -> None:
    driver = Driver(FakeBackend(n_drop_max=n_drop_max))
    driver.submit(PROMPT, 1)
    driver.run()
    fresh = driver.submit(PROMPT, 1, reuse=False)
    driver.run()
    again = driver.submit([*PROMPT, 98], 1)
    driver.run()
    driver.check_nothing_is_left()
    assert finished(fresh).usage.n_cached == 0
    assert finished(again).usage.n_cached == 70


def test_it_does_not_wait_for_another_with_the_same_prefix_either() -> None:
    driver = Driver(FakeBackend(n_batch=16))
    first = driver.submit(PROMPT, 1)
    fresh = driver.submit(PROMPT, 1, reuse=False)
    assert driver.core.metrics().sequences_running == 2
    driver.run()
    assert (finished(first).usage.n_cached, finished(fresh).usage.n_cached) == (0, 0)
    assert first.text == fresh.text


def test_neither_ram_nor_disk_is_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(FakeBackend(n_slots=1), cache_ram=1 << 20)
    for prompt in (PROMPT, [99] * 70):
        driver.submit(prompt, 1)
        driver.run()
    assert driver.core.metrics().states_saved_total == 1
    monkeypatch.setattr(driver.core._waits, "start", lambda _: pytest.fail("it was asked"))
    fresh = driver.submit(PROMPT, 1, reuse=False)
    driver.run()
    monkeypatch.undo()
    again = driver.submit([*PROMPT, 98], 1)
    driver.run()
    assert (finished(fresh).usage.n_cached, finished(again).usage.n_cached) == (0, 70)


def test_progress_is_told_from_the_start_to_the_end_of_a_prompt() -> None:
    driver = Driver(FakeBackend(n_batch=32))
    driver.submit(PROMPT[:40], 1)
    driver.run()
    sink = driver.submit(PROMPT, 2, progress=True)
    driver.run()
    told = [event for event in sink.events if isinstance(event, PromptProgress)]
    assert {(p.n_total, p.n_cached) for p in told} == {(70, 40)}
    assert [p.n_done for p in told] == sorted({40, 70} | {p.n_done for p in told})
    assert sink.events[: len(told)] == told
    seconds = [p.seconds for p in told]
    assert seconds == sorted(seconds) and seconds[0] >= 0


def test_timings_are_told_with_every_delta_where_asked() -> None:
    driver = Driver(FakeBackend())
    driver.submit(PROMPT[:40], 1)
    driver.run()
    sink = driver.submit(PROMPT, 3, timings=True)
    driver.run()
    timings = [event.timings for event in sink.events if isinstance(event, TextDelta | Finished)]
    assert all(t is not None and (t.n_cached, t.n_prompt) == (40, 30) for t in timings)
    assert [t.n_generated for t in timings if t] == [1, 2, 3, 3]
    assert [t.generation_s for t in timings if t][0] == 0
    assert all(t and t.prompt_s > 0 for t in timings)
    plain = driver.submit(PROMPT, 3)
    driver.run()
    assert {e.timings for e in plain.events if isinstance(e, TextDelta | Finished)} == {None}


def test_a_stop_token_ends_the_text_as_the_models_own_does() -> None:
    driver = Driver(FakeBackend(next_token=spelling("abc", len(PROMPT))))
    sink = driver.submit(PROMPT, 9, stop_tokens=(99,), logprobs=0)
    driver.run()
    assert (sink.text, finished(sink).reason) == ("ab", "stop")
    assert finished(sink).usage.n_completion == 3
    told = [t.token for e in sink.events if isinstance(e, TextDelta) for t in e.logprobs]
    assert told == [97, 98]


def test_neither_end_is_drawn_before_the_least_number_of_tokens() -> None:
    driver = Driver(FakeBackend(next_token=lambda tokens: EOG))
    sampling = SamplingParams(temperature=0, min_tokens=3, logit_bias={97: 9.0, 98: 5.0})
    sink = driver.submit(PROMPT, 9, sampling=sampling, stop_tokens=(97,))
    driver.run()
    assert sink.text == "bbb"
    assert finished(sink).reason == "stop"
    assert finished(sink).usage.n_completion == 4


def test_a_stop_token_ends_also_what_ignores_the_models_end() -> None:
    driver = Driver(FakeBackend(next_token=spelling("abc", len(PROMPT))))
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    sink = driver.submit(PROMPT, 9, sampling=sampling, stop_tokens=(99,))
    driver.run()
    assert (sink.text, finished(sink).reason) == ("ab", "stop")


def test_time_runs_out_at_a_line_break_or_after_it() -> None:
    def text(what: str, seconds: float) -> tuple[str, str]:
        driver = Driver(FakeBackend(next_token=spelling(what, len(PROMPT))))
        sink = driver.submit(PROMPT, 50, max_seconds=seconds)
        driver.run()
        return sink.text, finished(sink).reason

    assert text("one\ntwo", 0) == ("one\n", "length")
    assert text("one two", 0) == ("one two", "stop")
    assert text("one\ntwo", 1e9) == ("one\ntwo", "stop")


def test_a_row_of_which_nothing_can_be_drawn_fails_its_sequence_alone() -> None:
    class Draw:
        def draw(self, row: object) -> int:
            raise ArithmeticError("no token can be drawn")

        def accept(self, token: int) -> None: ...

        def close(self) -> None: ...

    backend = FakeBackend()
    backend.draw = lambda *_: Draw()  # type: ignore[assignment, return-value]
    driver = Driver(backend)
    good = driver.submit(PROMPT, 3)
    bad = driver.submit(PROMPT, 3, sampling=SamplingParams(typical_p=0.5))
    driver.run()
    driver.check_nothing_is_left()
    assert finished(good).usage.n_completion == 3
    assert isinstance(bad.events[-1], Failed) and isinstance(bad.events[-1].error, StepFailed)
