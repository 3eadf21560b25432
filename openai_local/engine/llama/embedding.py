"""A context of its own for embeddings. Engine thread only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

from openai_local.engine.backend import Batch, Floats
from openai_local.engine.config import EngineConfig
from openai_local.engine.crowding import Threads
from openai_local.engine.errors import Unsupported
from openai_local.engine.llama.batch import CBatch, decode, view
from openai_local.engine.llama.metadata import pooling
from openai_local.engine.machine import free_memory
from openai_local.engine.memory import (
    EMBEDDING_SEQS,
    EMBEDDING_SEQS_STATEFUL,
    embedding_batch,
)
from openai_local.engine.messages import ModelInfo


class LlamaEmbedding:
    """A context for embeddings. Causal models are pooled here, so that an input may come in
    pieces; models that look ahead are pooled by llama.cpp, an input at once. So are rerankers, of
    which causal ones score the last token, whatever came in pieces before it."""

    def __init__(self, model: Any, config: EngineConfig, info: ModelInfo, threads: Threads) -> None:
        self.whole_inputs = not info.can_generate
        stateful = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        self.n_seq = EMBEDDING_SEQS_STATEFUL if stateful else EMBEDDING_SEQS
        self._pooling = pooling(model)
        self.ranks = info.can_rank
        self.n_max = info.n_ctx
        self._n_embd: int = lib.llama_model_n_cls_out(model) if self.ranks else info.n_embd
        self.n_batch = embedding_batch(
            whole=self.whole_inputs,
            n_ctx=info.n_ctx,
            n_ubatch=config.n_ubatch,
            n_vocab=info.n_vocab,
            n_seq=self.n_seq,
            free_bytes=free_memory() if config.memory is None else config.memory,
        )
        params = lib.llama_context_default_params()
        pooled = self.whole_inputs or self.ranks
        params.pooling_type = self._pooling if pooled else lib.LLAMA_POOLING_TYPE_NONE
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_ctx = max(self.n_batch, info.n_ctx)
        params.n_seq_max = self.n_seq
        params.kv_unified = True
        params.embeddings = True
        self._threads = threads
        params.n_threads, params.n_threads_batch = threads.n, threads.n_batch
        params.no_perf = True
        params.swa_full = False
        if config.flash_attn is not None:
            params.flash_attn_type = int(config.flash_attn)
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise Unsupported("embeddings: llama.cpp cannot make their context")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = CBatch(self.n_batch)

    def embed(self, batch: Batch) -> Floats:
        c_batch = self._batch.fill(batch)
        slots, starts, counts = np.unique(batch.slots, return_index=True, return_counts=True)
        if self.whole_inputs:
            # What was made to generate keeps its memory, also where it was taught to look ahead.
            call = lib.llama_decode if self._memory else lib.llama_encode
            decode(self._context, c_batch, call, self._threads)
            return np.stack([self._pooled(int(slot)) for slot in slots])
        decode(self._context, c_batch, threads=self._threads)
        if self.ranks:
            return np.stack([self._pooled(int(slot)) for slot in slots])
        rows = view(lib.llama_get_embeddings(self._context), len(batch), self._n_embd)
        return np.stack([self._part(rows[a : a + n]) for a, n in zip(starts, counts, strict=True)])

    def pool(self, parts: Sequence[Floats], n_tokens: int) -> Floats:
        if self.whole_inputs or self._pooling == lib.LLAMA_POOLING_TYPE_CLS:
            return parts[0]
        if self.ranks or self._pooling == lib.LLAMA_POOLING_TYPE_LAST:
            return parts[-1]
        total = np.sum(np.stack(parts), axis=0, dtype=np.float64)
        return np.asarray(total / n_tokens, np.float32)

    def reset(self) -> None:
        if self._memory:
            lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            lib.llama_free(context)

    def _pooled(self, slot: int) -> Floats:
        vector = lib.llama_get_embeddings_seq(self._context, slot)
        return np.array(view(vector, 1, self._n_embd)[0], np.float32)

    def _part(self, rows: Floats) -> Floats:
        if self._pooling == lib.LLAMA_POOLING_TYPE_CLS:
            return np.array(rows[0], np.float32)
        if self._pooling == lib.LLAMA_POOLING_TYPE_LAST:
            return np.array(rows[-1], np.float32)
        return np.asarray(rows.sum(axis=0, dtype=np.float64), np.float32)
