"""A row of logits to a token: the distribution, and what top_k, top_p and min_p leave of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_local.engine import SamplingParams
from openai_local.engine.backend import Draw
from openai_local.engine.draw import BLOCK, find_in_row, make_draw


def draw_of(n_vocab: int, seed: int = 1, **params: Any) -> Draw:
    return make_draw(SamplingParams(**params), seed, np.empty(n_vocab, np.float32))


def row(*logits: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(logits, np.float32)


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.9999999}])
def test_a_draw_follows_the_softmax_at_its_temperature(params: dict[str, Any]) -> None:
    logits = row(0, 1, 2, -np.inf)
    draw = draw_of(4, temperature=0.5, **params)
    counts = np.bincount([draw.draw(logits.copy()) for _ in range(20_000)], minlength=4)
    weights = np.exp(logits / 0.5)
    assert np.allclose(counts / 20_000, weights / weights.sum(), atol=0.015)
    assert counts[3] == 0


@pytest.mark.parametrize("params", [{}, {"top_k": 4}, {"top_p": 0.9999999}])
def test_min_p_leaves_what_is_likely_enough_before_the_temperature(params: dict[str, Any]) -> None:
    logits = row(0, np.log(0.5), np.log(0.09), np.log(0.11))
    draw = draw_of(4, temperature=2.0, min_p=0.1, **params)
    assert {draw.draw(logits.copy()) for _ in range(2000)} == {0, 1, 3}


def test_a_seed_fixes_the_draws_and_a_tiny_temperature_is_greedy() -> None:
    logits = row(*np.linspace(0, 3, 50))

    def draws(seed: int, **params: Any) -> list[int]:
        draw = draw_of(50, seed, **params)
        return [draw.draw(logits.copy()) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)
    assert set(draws(1, temperature=1e-40)) == set(draws(1, temperature=1e-40, top_k=9)) == {49}


def left_by(logits: np.ndarray[Any, Any], top_k: int, top_p: float, min_p: float) -> list[int]:
    """The candidates as llama.cpp's samplers define them, the plain way."""
    ids = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if top_k:
        ids = ids[:top_k]
    weights = np.exp(np.float64(logits[ids]) - logits[ids[0]])
    weights /= weights.sum()
    n = next((i + 1 for i in range(len(ids)) if weights[: i + 1].sum() >= top_p), len(ids))
    return [token for token in ids[:n] if logits[token] >= logits[ids[0]] + np.log(min_p or 1e-30)]


@given(
    n_vocab=st.sampled_from([1, 7, BLOCK, BLOCK + 1, 5 * BLOCK, 40 * BLOCK - 3]),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    offset=st.sampled_from([-50.0, 0.0, 50.0]),
    top_k=st.sampled_from([0, 1, 2, 38, 39, 500, 10**6]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_the_candidates_are_those_of_the_definition(
    n_vocab: int, spread: float, offset: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(offset, spread, n_vocab).astype(np.float32)
    # Equal logits may be cut anywhere, and rounding decides at the edge of top_p.
    expected = set(np.float64(logits[left_by(logits, top_k, top_p, min_p)]))
    likely = left_by(logits, top_k, min(top_p + 1e-4, 1), min_p)
    allowed = set(np.float64(logits[likely])) | expected
    draw = draw_of(n_vocab, seed, temperature=1.5, top_k=top_k or n_vocab, top_p=top_p, min_p=min_p)
    drawn = {float(logits[draw.draw(logits.copy())]) for _ in range(20)}
    assert drawn <= allowed


@pytest.mark.parametrize("top_k", [2, 38, 39, 40])
@pytest.mark.parametrize("offset", [-50, 50])
def test_all_that_top_k_leaves_is_drawn(top_k: int, offset: float) -> None:
    # 40 blocks, the last not whole.
    logits = np.random.default_rng(1).normal(offset, 0.1, 40 * BLOCK - 3).astype(np.float32)
    draw = draw_of(len(logits), top_k=top_k)
    expected = set(np.argsort(-logits)[:top_k].tolist())
    assert {draw.draw(logits.copy()) for _ in range(2000)} == expected


def test_what_is_forbidden_is_not_drawn_though_top_k_would_leave_more() -> None:
    logits = np.full(40 * BLOCK - 3, -np.inf, np.float32)
    logits[[3, 4, 40 * BLOCK - 4]] = 0
    draw = draw_of(len(logits), top_k=9)
    assert {draw.draw(logits.copy()) for _ in range(200)} == {3, 4, 40 * BLOCK - 4}


def test_all_that_top_p_leaves_is_drawn() -> None:
    logits = np.log(row(0.02, 0.4, 0.3, 0.2, 0.08))
    draw = draw_of(5, top_p=0.75)
    assert {draw.draw(logits.copy()) for _ in range(2000)} == {1, 2, 3}


def test_a_flat_row_is_cut_by_top_p_where_no_token_is_likely() -> None:
    logits = np.zeros(100_000, np.float32)
    logits[5] = 10.0
    draw = draw_of(100_000, top_p=0.5)
    drawn = {draw.draw(logits.copy()) for _ in range(200)}
    assert 5 in drawn and len(drawn) > 20


def test_a_place_in_the_sum_finds_its_token_across_blocks_and_never_one_of_no_weight() -> None:
    n_vocab = 2 * BLOCK + 5
    weights = np.float32(np.random.default_rng(1).random(n_vocab) ** 3 + 1e-3)
    for empty in (slice(7), slice(BLOCK - 3, BLOCK + 3), slice(-2, None)):
        weights[empty] = 0
    sums = weights.cumsum(dtype=np.float64) / weights.sum(dtype=np.float64)
    middles = sums - weights / weights.sum(dtype=np.float64) / 2
    for token in np.flatnonzero(weights):
        assert find_in_row(weights, middles[token]) == token
    assert find_in_row(weights, 0.0) == 7
    assert find_in_row(weights, float(np.nextafter(1, 0))) == n_vocab - 3
