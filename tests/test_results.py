"""What a generation makes of its tokens, and where it ends."""

from __future__ import annotations

from driver import Driver
from fakes import EOG, FakeBackend, FakeDraw, letters, spelling

from openai_local.engine import Finished, SamplingParams


def test_the_end_token_is_counted_and_has_no_text() -> None:
    driver = Driver(FakeBackend(next_token=spelling("hi", 1)))
    sink = driver.submit([97], 10)
    driver.run()
    assert sink.text == "hi"
    end = sink.events[-1]
    assert (end.reason, end.usage.n_completion) == ("stop", 3)


def test_ignoring_the_end_token_goes_on_to_the_limit() -> None:
    backend = FakeBackend(next_token=lambda tokens: EOG if len(tokens) == 3 else letters(tokens))
    driver = Driver(backend)
    sink = driver.submit([97], 6, sampling=SamplingParams(temperature=0, ignore_eos=True))
    driver.run()
    assert sink.events[-1].reason == "length"
    assert sink.events[-1].usage.n_completion == 6


def test_a_stop_string_ends_the_generation_before_it() -> None:
    driver = Driver(FakeBackend(next_token=spelling("one two three", 1)))
    sink = driver.submit([97], 20, stop=("o t", "zzz"))
    driver.run()
    assert sink.text == "one tw"
    assert sink.events[-1].reason == "stop"


def test_the_context_bounds_a_generation_without_a_limit() -> None:
    driver = Driver(FakeBackend(n_ctx=32))
    sink = driver.submit([97] * 30, None)
    driver.run()
    assert sink.events[-1].reason == "length"
    assert sink.events[-1].usage.n_completion == 2


def test_no_tokens_are_asked_for_and_none_are_made() -> None:
    driver = Driver(FakeBackend())
    sink = driver.submit([97], 0)
    assert sink.events == [Finished("length", sink.events[0].usage)]
    assert not driver.backend.batches


def test_the_same_seed_gives_the_same_text_and_every_draw_is_closed() -> None:
    driver = Driver(FakeBackend())
    texts = [driver.submit([97], 8, sampling=SamplingParams(seed=seed)) for seed in (3, 3, 4, None)]
    driver.run()
    same, again, other, _ = (sink.text for sink in texts)
    assert same == again != other
    assert FakeDraw.open_draws == 0


def test_biases_and_penalties_move_the_choice() -> None:
    driver = Driver(FakeBackend(next_token=lambda tokens: 97))
    biased = driver.submit([97], 3, sampling=SamplingParams(temperature=0, logit_bias={98: 100}))
    penalised = driver.submit(
        [97], 3, sampling=SamplingParams(temperature=0, presence_penalty=2, logit_bias={99: 9})
    )
    driver.run()
    assert biased.text == "bbb"
    assert penalised.text == "aca"
