"""llama.cpp's own samplers on the real model's vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openai_local.engine import EngineConfig, SamplingParams
from openai_local.engine.backend import Backend, Floats
from openai_local.engine.sampler_steps import check, effective, needs_chain

pytestmark = pytest.mark.model

N_DRAWS = 300


@pytest.fixture(scope="module")
def backend(smollm2: Path) -> Iterator[Backend]:
    from openai_local.engine.llama import LlamaBackend

    backend = LlamaBackend(EngineConfig(smollm2, n_ctx=256, n_parallel=1))
    yield backend
    backend.close()


def row_of(backend: Backend, **logits: float) -> Floats:
    """All but a few tokens, named t1, t2 ..., are ruled out."""
    row = np.full(backend.info.n_vocab, -np.inf, np.float32)
    for name, logit in logits.items():
        row[int(name[1:])] = logit
    return row


def drawn(
    backend: Backend, row: Floats, prompt: tuple[int, ...] = (), n: int = N_DRAWS, **params: Any
) -> list[int]:
    """Draws after the same prompt."""
    given = SamplingParams(**params)
    check(given)
    given = effective(given)
    assert needs_chain(given)
    draw = backend.draw(given, 5, prompt)
    try:
        return [draw.draw(row.copy()) for _ in range(n)]
    finally:
        draw.close()


def test_typical_keeps_what_is_near_the_entropy(backend: Backend) -> None:
    # p = 0.7 and three of 0.1: the entropy 0.94 is nearest to 0.7's 0.36.
    row = row_of(backend, t1=math.log(0.7), t2=math.log(0.1), t3=math.log(0.1), t4=math.log(0.1))
    assert set(drawn(backend, row, typical_p=0.6)) == {1}
    assert set(drawn(backend, row, typical_p=0.99)) == {1, 2, 3, 4}


def test_top_n_sigma_keeps_what_is_near_the_likeliest(backend: Backend) -> None:
    row = row_of(backend, t1=4.0, t2=3.9, t3=0.0, t4=0.0)  # one sigma is 1.98
    assert set(drawn(backend, row, top_n_sigma=1.0)) == {1, 2}
    assert set(drawn(backend, row, top_n_sigma=3.0)) == {1, 2, 3, 4}


def test_xtc_leaves_out_the_likeliest_but_the_last_of_them(backend: Backend) -> None:
    row = row_of(backend, t1=math.log(0.5), t2=math.log(0.3), t3=math.log(0.15), t4=math.log(0.05))
    assert set(drawn(backend, row, xtc_probability=1.0, xtc_threshold=0.1)) == {3, 4}
    assert set(drawn(backend, row, xtc_probability=0.5, xtc_threshold=0.1)) == {1, 2, 3, 4}
    assert set(drawn(backend, row, xtc_probability=1.0, xtc_threshold=0.1, temperature=0)) == {3}


def test_dry_penalises_what_would_repeat_a_sequence(backend: Backend) -> None:
    prompt = (11, 12, 13, 14, 11, 12, 13)
    row = row_of(backend, t14=5.0, t15=0.0)
    assert set(drawn(backend, row, prompt, dry_multiplier=5.0, temperature=0)) == {15}
    assert 14 in drawn(backend, row, prompt[:4], dry_multiplier=5.0)
    # A penalty of 5 * 1.75 ** (3 - allowed) is not enough any more.
    allowed = {"dry_multiplier": 1.0, "dry_allowed_length": 3, "temperature": 0}
    assert set(drawn(backend, row, prompt, **allowed)) == {14}


def test_a_sequence_breaker_ends_what_dry_sees_as_repeated(backend: Backend) -> None:
    vocabulary = backend.vocabulary
    (stop,) = vocabulary.tokenize("!", add_special=False, parse_special=False)
    prompt = (11, 12, stop, 14, 11, 12, stop)
    row = row_of(backend, t14=5.0, t15=0.0)
    dry = {"dry_multiplier": 50.0, "temperature": 0}
    assert set(drawn(backend, row, prompt, **dry)) == {15}
    assert set(drawn(backend, row, prompt, dry_sequence_breakers=("!",), **dry)) == {14}


def test_the_window_of_dry_bounds_what_it_sees(backend: Backend) -> None:
    prompt = (11, 12, 13, 14, *range(100, 140), 11, 12, 13)
    row = row_of(backend, t14=5.0, t15=0.0)
    dry = {"dry_multiplier": 50.0, "temperature": 0}
    assert set(drawn(backend, row, prompt, dry_penalty_last_n=20, **dry)) == {14}
    for whole in (-1, 2**31 - 1):  # more than there is, and nothing is allocated for it
        assert set(drawn(backend, row, prompt, dry_penalty_last_n=whole, **dry)) == {15}


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_aims_at_its_surprise(backend: Backend, version: int) -> None:
    row = np.random.default_rng(1).normal(0, 2, backend.info.n_vocab).astype(np.float32)
    weights = np.exp(row.astype(np.float64) - row.max())
    surprises = -np.log2(weights / weights.sum())

    def mean_surprise(tau: float) -> float:
        tokens = drawn(backend, row, n=200, mirostat=version, mirostat_tau=tau, mirostat_eta=0.3)
        return float(surprises[tokens[50:]].mean())

    assert mean_surprise(6.0) < mean_surprise(10.0)


def test_a_dynamic_temperature_is_low_where_the_model_is_sure(backend: Backend) -> None:
    sure = row_of(backend, t1=6.0, t2=0.0, t3=0.0)
    unsure = row_of(backend, t1=0.1, t2=0.0, t3=0.0)
    dynamic = {"temperature": 1.0, "dynatemp_range": 1.0}
    assert set(drawn(backend, sure, **dynamic)) == {1}
    assert set(drawn(backend, unsure, **dynamic)) == {1, 2, 3}


def test_steps_go_in_the_order_that_was_asked_for(backend: Backend) -> None:
    row = row_of(backend, t1=2.0, t2=1.0, t3=0.0)
    hot = {"temperature": 2.0, "top_p": 0.7}
    # Weights are 0.67, 0.24, 0.09 before and 0.51, 0.31, 0.19 after the temperature.
    order = ("temperature", "top_p")
    assert set(drawn(backend, row, samplers=order, **hot)) == {1, 2}
    cut = {"top_p": 0.6, "temperature": 2.0}
    assert set(drawn(backend, row, samplers=order, **cut)) == {1, 2}
    assert set(drawn(backend, row, min_keep=2, top_p=0.6)) == {1, 2}


def test_penalties_after_a_cut_see_what_is_left(backend: Backend) -> None:
    row = row_of(backend, t1=3.0, t2=2.9, t3=2.8)
    order = {"samplers": ("top_k", "penalties", "temperature"), "top_k": 2, "temperature": 0}
    assert set(drawn(backend, row, (1, 1), repeat_penalty=2.0, **order)) == {2}
    # OpenAI's penalties are of what was generated, and of all of it.
    generated = effective(SamplingParams(frequency_penalty=0.06, repeat_last_n=1, **order))
    draw = backend.draw(generated, 1, (1, 1))
    tokens = []
    for _ in range(6):
        tokens.append(draw.draw(row.copy()))
        draw.accept(tokens[-1])
    draw.close()
    assert tokens == [1, 1, 2, 1, 2, 1]


EXOTIC: list[dict[str, Any]] = [
    {"typical_p": 0.5},
    {"top_n_sigma": 1.0},
    {"xtc_probability": 0.5},
    {"dry_multiplier": 0.8},
    {"mirostat": 1},
    {"mirostat": 2},
    {"dynatemp_range": 0.5},
    {"samplers": ("temperature", "top_k"), "top_k": 5, "temperature": 0.5},
    {
        "typical_p": 0.5, "top_n_sigma": 1.0, "min_p": 0.1, "xtc_probability": 0.5,
        "dry_multiplier": 1.0, "dynatemp_range": 0.2, "min_keep": 3,
    },
]  # fmt: skip


@pytest.mark.parametrize("params", EXOTIC)
def test_a_seed_fixes_the_draws(backend: Backend, params: dict[str, Any]) -> None:
    row = np.random.default_rng(1).normal(0, 2, backend.info.n_vocab).astype(np.float32)
    assert drawn(backend, row, (5, 6), 20, **params) == drawn(backend, row, (5, 6), 20, **params)


@pytest.mark.parametrize("params", EXOTIC)
def test_rows_on_which_samplers_would_abort_are_errors_or_draws(
    backend: Backend, params: dict[str, Any]
) -> None:
    assert set(drawn(backend, row_of(backend, t7=-1e30), n=9, **params)) == {7}
    assert set(drawn(backend, row_of(backend, t7=9.0, t8=-1e30), n=9, **params)) == {7}
    assert set(drawn(backend, row_of(backend, t7=1.0, t8=1.0), n=40, **params)) <= {7, 8}
    for nothing in (row_of(backend), row_of(backend, t7=math.nan)):
        with pytest.raises(ArithmeticError):
            drawn(backend, nothing, n=1, **params)


def tokens_of(backend: Backend, *texts: str) -> list[int]:
    found = [backend.vocabulary.tokenize(t, add_special=False, parse_special=True) for t in texts]
    assert all(len(tokens) == 1 for tokens in found)
    return [tokens[0] for tokens in found]


def test_infill_is_llama_cpps(backend: Backend) -> None:
    import ctypes

    import llama_cpp as lib

    eog = backend.vocabulary.eog_tokens()
    words = tokens_of(backend, " the", " there", " t", " a", "x", "\n")
    model: Any = backend
    vocab = model._chains._vocab
    random = np.random.default_rng(3)
    for _ in range(60):
        row = row_of(backend)
        some = random.choice(words, size=4, replace=False)
        row[some] = random.normal(0, 3, 4)
        if random.random() < 0.5:
            row[random.choice(eog)] = random.normal(-4, 3)
        (ids,) = np.nonzero(row > -np.inf)
        data = (lib.llama_token_data * len(ids))(
            *(lib.llama_token_data(int(i), float(row[i]), 0.0) for i in ids)
        )
        array = lib.llama_token_data_array(data, len(ids), -1, False)
        sampler = lib.llama_sampler_init_infill(vocab)
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
        left = {array.data[i].id for i in range(array.size) if array.data[i].logit > -np.inf}
        order = ("top_k", "infill")
        if left <= set(ids.tolist()):
            best = max(left, key=lambda i: row[i])
        else:  # an end that was ruled out
            left, best = {int(row.argmax())}, int(row.argmax())
        assert set(drawn(backend, row, samplers=order, top_k=200, n=50)) <= left
        assert drawn(backend, row, samplers=(*order, "temperature"), top_k=200, temperature=0,
                     n=1) == [best]  # fmt: skip


def test_infill_ends_where_no_text_is_likely_enough_unless_it_must_not(backend: Backend) -> None:
    order = {"samplers": ("top_k", "infill"), "top_k": 100}
    (end, *_) = backend.vocabulary.eog_tokens()
    words = tokens_of(backend, " the", " a", "x", "\n", "1", "?")
    row = row_of(backend, **{f"t{word}": 0.0 for word in words})  # a sixth each
    row[words[0]] = 0.01
    assert set(drawn(backend, row, n=20, **order)) == {words[0]}
    row[end] = -9.0
    assert set(drawn(backend, row, n=20, **order)) <= set(backend.vocabulary.eog_tokens())
