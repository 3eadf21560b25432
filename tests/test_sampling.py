"""Bias and penalties on a row of logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from openai_local.engine import SamplingParams
from openai_local.engine.sampling import Sampler


def sampler(prompt: tuple[int, ...] = (), **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), prompt, (3,), None)


def row(*logits: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(logits, np.float32)


def test_presence_counts_once_and_frequency_each_time_over_the_generated_tokens() -> None:
    sampling = sampler(prompt=(0, 0), presence_penalty=0.5, frequency_penalty=0.25)
    sampling.sample(row(9, 0, 0, 0))
    sampling.sample(row(9, 0, 0, 0))
    logits = row(9, 0, 0, 0)
    sampling.sample(logits)
    assert logits.tolist() == [9 - 0.5 - 2 * 0.25, 0, 0, 0]


def test_repeat_penalty_divides_what_is_positive_and_multiplies_the_rest_prompt_included() -> None:
    logits = row(4, -4, 4, 0)
    sampler(prompt=(0, 1), repeat_penalty=2.0).sample(logits)
    assert logits.tolist() == [2, -8, 4, 0]


def test_repeat_penalty_looks_back_over_its_window_only() -> None:
    logits = row(4, 4, 4, 0)
    sampler(prompt=(0, 1), repeat_penalty=2.0, repeat_last_n=1).sample(logits)
    assert logits.tolist() == [4, 2, 4, 0]


def test_bias_is_added_and_ignoring_the_end_forbids_it() -> None:
    logits = row(1, 2, 3, 9)
    token = sampler(logit_bias={0: 5.0, 3: 100.0}, ignore_eos=True).sample(logits)
    assert token == 0
    assert logits.tolist() == [6, 2, 3, -np.inf]


def test_a_bias_comes_before_the_penalties_as_in_llama_server() -> None:
    logits = row(4, 0, 0, 0)
    sampler(prompt=(0,), repeat_penalty=2.0, logit_bias={0: 4.0}).sample(logits)
    assert logits.tolist() == [4, 0, 0, 0]


def test_the_end_waits_for_the_least_number_of_tokens() -> None:
    sampling = sampler(min_tokens=2)
    assert [sampling.sample(row(1, 2, 3, 9)) for _ in range(4)] == [2, 2, 3, 3]


def test_tokens_that_were_not_drawn_count_too() -> None:
    sampling = sampler(presence_penalty=5.0, repeat_penalty=2.0, min_tokens=1)
    sampling.accept(0)
    logits = row(4, 0, 0, 9)
    assert sampling.sample(logits) == 3
    assert logits.tolist() == [4 / 2 - 5, 0, 0, 9]


def test_the_penalties_are_left_to_the_draw_where_a_step_comes_before_them() -> None:
    logits = row(4, 3, 0, 0)
    order = ("top_k", "penalties")
    sampler(prompt=(0,), samplers=order, top_k=2, repeat_penalty=9.0).sample(logits)
    assert logits.tolist() == [4, 3, 0, 0]


def test_what_the_model_is_not_to_say_it_never_says() -> None:
    params = SamplingParams(logit_bias={2: 100.0})
    sampling = Sampler(params, (), (3,), None, never=(2,))
    assert sampling.sample(row(1, 2, 9, 0)) == 1
