"""The prefill budget: how many prompt tokens go between two tokens of a stream."""

from __future__ import annotations

import pytest

from openai_local.engine.scheduler import MAX_CHUNK_S, MIN_CHUNK_TOKENS, PrefillBudget


def budget(tokens_per_s: float, decode_s: float, n_batch: int = 2048) -> PrefillBudget:
    """Settled on these speeds, with a target of 100 ms."""
    budget = PrefillBudget(n_batch, 0.1)
    for _ in range(100):
        budget.observe_prefill(100, 100 / tokens_per_s)
        budget.observe_decode(decode_s)
    return budget


def test_with_streams_running_a_chunk_and_a_decode_fit_the_target() -> None:
    assert budget(1000, 0.02).tokens(1) == pytest.approx(80, abs=1)


def test_with_nobody_streaming_a_chunk_is_as_long_as_half_a_second() -> None:
    assert budget(1000, 0.02).tokens(0) == pytest.approx(1000 * MAX_CHUNK_S, abs=1)


def test_the_batch_bounds_a_chunk() -> None:
    assert budget(100_000, 0.02, n_batch=512).tokens(0) == 512


def test_where_decodes_alone_take_the_target_a_chunk_takes_as_long_as_they_do() -> None:
    assert budget(1000, 0.09).tokens(32) == pytest.approx(90, abs=1)
    assert budget(10, 0.09).tokens(32) == MIN_CHUNK_TOKENS


def test_a_burst_of_prompts_has_more_than_the_few_streams_beside_it() -> None:
    assert budget(1000, 0.02).tokens(2, 2) == pytest.approx(80, abs=1)
    assert budget(1000, 0.02).tokens(2, 6) == pytest.approx(240, abs=1)
    assert budget(1000, 0.02).tokens(1, 31) == pytest.approx(1000 * MAX_CHUNK_S, abs=1)


def test_short_chunks_say_nothing_of_the_speed() -> None:
    settled = budget(1000, 0.0)
    before = settled.tokens(1)
    settled.observe_prefill(1, 1.0)
    assert settled.tokens(1) == before
