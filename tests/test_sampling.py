"""Bias and penalties on a row of logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from openai_local.engine import SamplingParams
from openai_local.engine.sampling import CategoricalDraw, Sampler


def sampler(prompt: tuple[int, ...] = (), **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), prompt, (3,), None)


def row(*logits: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(logits, np.float32)


def test_presence_counts_once_and_frequency_each_time_over_the_generated_tokens() -> None:
    sampling = sampler(prompt=(0, 0), presence_penalty=0.5, frequency_penalty=0.25)
    sampling.sample(row(9, 0, 0, 0), 0)
    sampling.sample(row(9, 0, 0, 0), 0)
    logits = row(9, 0, 0, 0)
    sampling.sample(logits, 0)
    assert logits.tolist() == [9 - 0.5 - 2 * 0.25, 0, 0, 0]


def test_repeat_penalty_divides_what_is_positive_and_multiplies_the_rest_prompt_included() -> None:
    logits = row(4, -4, 4, 0)
    sampler(prompt=(0, 1), repeat_penalty=2.0).sample(logits, 0)
    assert logits.tolist() == [2, -8, 4, 0]


def test_repeat_penalty_looks_back_over_its_window_only() -> None:
    logits = row(4, 4, 4, 0)
    sampler(prompt=(0, 1), repeat_penalty=2.0, repeat_last_n=1).sample(logits, 0)
    assert logits.tolist() == [4, 2, 4, 0]


def test_bias_is_added_and_ignoring_the_end_forbids_it() -> None:
    logits = row(1, 2, 3, 9)
    token = sampler(logit_bias={0: 5.0, 3: 100.0}, ignore_eos=True).sample(logits, 0)
    assert token == 0
    assert logits.tolist() == [6, 2, 3, -np.inf]


def test_a_draw_follows_the_softmax_at_its_temperature() -> None:
    logits = row(0, 1, 2, -np.inf)
    draw = CategoricalDraw(temperature=0.5, min_p=0.0, seed=1)
    counts = np.bincount([draw.draw(logits, 0) for _ in range(20_000)], minlength=4)
    weights = np.exp(logits / 0.5)
    assert np.allclose(counts / 20_000, weights / weights.sum(), atol=0.015)
    assert counts[3] == 0


def test_min_p_leaves_what_is_likely_enough_before_the_temperature() -> None:
    logits = row(0, np.log(0.5), np.log(0.09), np.log(0.11))
    draw = CategoricalDraw(temperature=2.0, min_p=0.1, seed=1)
    assert {draw.draw(logits, 0) for _ in range(2000)} == {0, 1, 3}


def test_a_seed_fixes_the_draws_and_a_tiny_temperature_is_greedy() -> None:
    logits = row(*np.linspace(0, 3, 50))

    def draws(seed: int, temperature: float = 1.0) -> list[int]:
        draw = CategoricalDraw(temperature, 0.0, seed)
        return [draw.draw(logits, 0) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)
    assert set(draws(1, 1e-40)) == {49}
