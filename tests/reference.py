"""llama.cpp by itself, which says whether what the engine made of a prompt is right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from openai_local.engine.llama.library import prepare_process


class Reference:
    """A model of which each sequence has a fresh context, all of it in one decode."""

    def __init__(self, path: Path, n_threads: int = 1) -> None:
        prepare_process()
        params = lib.llama_model_default_params()
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        self._n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._n_threads = n_threads

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Each token of a greedy answer is the likeliest, but for ties: batches differ in the last
        bits. With a token of the prompt missing, or at another place, others are likelier by far.
        """
        rows = self._rows([*prompt, *answer[:-1]], len(answer))
        taken = rows[np.arange(len(answer)), list(answer)]
        worst = ((rows.max(axis=1) - taken) / rows.std(axis=1)).max()
        assert worst < 0.05, f"a token is {worst:.2f} standard deviations below the likeliest"

    def _rows(self, tokens: Sequence[int], n_last: int) -> np.ndarray[Any, Any]:
        n = len(tokens)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = n
        params.n_threads = params.n_threads_batch = self._n_threads
        context = lib.llama_init_from_model(self._model, params)
        batch = lib.llama_batch_init(n, 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, i >= n - n_last
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.n_tokens = n
            assert lib.llama_decode(context, batch) == 0
            shape = (n_last, self._n_vocab)
            return np.ctypeslib.as_array(lib.llama_get_logits(context), shape).copy()
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)

    def scores(self, tokens: Sequence[int], n: int = 1) -> np.ndarray[Any, Any]:
        """What a reranker says of one input, shape (n,)."""
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
        params.n_threads = params.n_threads_batch = self._n_threads
        params.embeddings, params.pooling_type = True, lib.LLAMA_POOLING_TYPE_RANK
        context = lib.llama_init_from_model(self._model, params)
        c_tokens = (lib.llama_token * len(tokens))(*tokens)
        try:
            compute = lib.llama_decode if lib.llama_get_memory(context) else lib.llama_encode
            assert compute(context, lib.llama_batch_get_one(c_tokens, len(tokens))) == 0
            return np.ctypeslib.as_array(lib.llama_get_embeddings_seq(context, 0), (n,)).copy()
        finally:
            lib.llama_free(context)

    def close(self) -> None:
        lib.llama_model_free(self._model)
