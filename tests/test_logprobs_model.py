"""Log-probabilities of the real model, recomputed from raw logits by llama.cpp alone."""

from __future__ import annotations

import ctypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from openai_local.engine import (
    Engine,
    EngineConfig,
    GenerationRequest,
    PromptLogprobs,
    SamplingParams,
    TextDelta,
    TokenLogprob,
)

pytestmark = [pytest.mark.model, pytest.mark.anyio]

TEXT = "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is"
# Single tokens and chunks go through kernels that round differently.
TOLERANCE = 0.03


@pytest.fixture
async def engine(smollm2: Path, anyio_backend: str) -> AsyncIterator[Engine]:
    async with Engine(EngineConfig(smollm2, n_ctx=512, n_parallel=2)) as engine:
        yield engine


def raw_logprobs(path: Path, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Of every token that could follow each prefix of ``tokens``, shape (n, n_vocab)."""
    import llama_cpp as lib

    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    context = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert lib.llama_decode(context, batch) == 0
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = np.ctypeslib.as_array(
        ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float)),
        (len(tokens), n_vocab),
    ).astype(np.float64)
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    rows -= rows.max(axis=1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


def check(entry: TokenLogprob, raw: npt.NDArray[np.float64], n_top: int) -> None:
    assert entry.logprob == pytest.approx(raw[entry.token], abs=TOLERANCE)
    assert len(entry.top) == n_top
    told = [other.logprob for other in entry.top]
    assert told == pytest.approx([raw[other.token] for other in entry.top], abs=TOLERANCE)
    assert told == pytest.approx(np.sort(raw)[::-1][:n_top], abs=TOLERANCE)


async def logprobs_of(
    engine: Engine, prompt: list[int], **sampling: Any
) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
    """Of the prompt and of twelve tokens after it."""
    request = GenerationRequest(
        prompt, 12, SamplingParams(ignore_eos=True, **sampling), logprobs=5, prompt_logprobs=True
    )
    of_prompt: list[TokenLogprob] = []
    generated: list[TokenLogprob] = []
    async for event in engine.submit(request):
        if isinstance(event, PromptLogprobs):
            of_prompt += event.tokens
        elif isinstance(event, TextDelta):
            generated += event.logprobs
    return of_prompt, generated


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {
            "temperature": 1.5, "seed": 3, "presence_penalty": 1.0, "repeat_penalty": 1.3,
            "logit_bias": {216: 5.0}, "top_p": 0.9,
        },
        {"temperature": 1.5, "seed": 3, "typical_p": 0.8, "dry_multiplier": 1.0},
    ],
)  # fmt: skip
async def test_they_are_the_models_own_whatever_is_done_to_its_logits(
    smollm2: Path, engine: Engine, sampling: dict[str, Any]
) -> None:
    prompt = engine.tokenize(TEXT)
    of_prompt, generated = await logprobs_of(engine, prompt, **sampling)
    assert [entry.token for entry in of_prompt] == prompt
    assert of_prompt[0].logprob is None
    assert len(generated) == 12
    told = [*of_prompt, *generated]
    raw = raw_logprobs(smollm2, [entry.token for entry in told])
    for i, entry in enumerate(told[1:]):
        check(entry, raw[i], 5)


async def test_a_prompt_in_many_pieces_has_the_same(smollm2: Path, anyio_backend: str) -> None:
    async with Engine(EngineConfig(smollm2, n_ctx=512, n_parallel=2)) as engine:
        prompt = engine.tokenize(TEXT)
        core = engine._shared.core
        assert core is not None
        core._computing._n_rows_max = 5
        of_prompt, _ = await logprobs_of(engine, prompt, temperature=0.0)
    raw = raw_logprobs(smollm2, prompt)
    for i, entry in enumerate(of_prompt[1:]):
        check(entry, raw[i], 5)
