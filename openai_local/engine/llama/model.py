"""A model file, its weights, and a context for generation. Engine thread only."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from typing import Any

import llama_cpp as lib
import numpy as np

from openai_local.engine.backend import Batch, Draw, Floats
from openai_local.engine.config import EngineConfig
from openai_local.engine.draw import Weights, make_draw
from openai_local.engine.errors import EngineStopped, ModelLoadFailed
from openai_local.engine.llama.batch import CBatch, decode, view
from openai_local.engine.llama.embedding import LlamaEmbedding
from openai_local.engine.llama.library import prepare_process
from openai_local.engine.llama.metadata import (
    arch,
    chat_template,
    kv_bytes_per_token,
    meta,
    sampling_defaults,
    text_of,
)
from openai_local.engine.llama.vocabulary import LlamaVocabulary
from openai_local.engine.machine import free_memory, physical_cores
from openai_local.engine.memory import KV_SHARE, plan_context
from openai_local.engine.messages import ModelInfo, SamplingParams

logger = logging.getLogger(__name__)

_CACHE_TYPES = {
    "f16": lib.GGML_TYPE_F16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
}


class LlamaBackend:
    """A model file, its weights, and a context in the streams layout, one stream a slot.

    Raises ModelLoadFailed, with a reason that names what is wrong.
    """

    def __init__(self, config: EngineConfig, stopping: Callable[[], bool] = lambda: False) -> None:
        """``stopping`` is asked while the file is read; when it holds, raises EngineStopped."""
        prepare_process()
        if not config.model.is_file():
            raise ModelLoadFailed(config.model, "there is no such file")
        self._config = config
        self._context: Any = None
        self._logits: Floats = np.empty((0, 0), np.float32)
        self._logits_at: int | None = None
        self._model = self._load_model(stopping)
        try:
            vocabulary = lib.llama_model_get_vocab(self._model)
            if lib.llama_vocab_type(vocabulary) == lib.LLAMA_VOCAB_TYPE_NONE:
                raise ModelLoadFailed(config.model, "it has no vocabulary")
            self.vocabulary = LlamaVocabulary(self._model)
            self._weights = Weights(self.vocabulary.n_tokens)
            self._open_context()
        except BaseException:
            self.close()
            raise

    @property
    def n_slots(self) -> int:
        return self.info.n_parallel

    @property
    def can_drop(self) -> bool:
        model = self._model
        stateful = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        return not stateful and not self._n_swa

    def decode(self, batch: Batch) -> Floats:
        decode(self._context, self._batch.fill(batch))
        n_rows = int(np.count_nonzero(batch.outputs))
        if n_rows == 0:
            return np.empty((0, self.info.n_vocab), np.float32)
        return self._logits_view(n_rows)

    def _logits_view(self, n_rows: int) -> Floats:
        pointer = lib.llama_get_logits(self._context)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        # llama.cpp moves its buffer only to enlarge it; a view costs more than its use.
        if address != self._logits_at or n_rows > len(self._logits):
            self._logits = view(pointer, n_rows, self.info.n_vocab)
            self._logits_at = address
        return self._logits[:n_rows]

    def copy(self, source: int, target: int) -> None:
        # Across streams only a whole copy is possible; a partial one is an assertion.
        lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def truncate(self, slot: int, n_keep: int) -> bool:
        memory = self._memory
        if n_keep > 0:
            # A sliding window may have dropped what the first new token attends to.
            first_needed = max(0, n_keep - self._n_swa) if self._n_swa else 0
            has_all = (
                0 <= lib.llama_memory_seq_pos_min(memory, slot) <= first_needed
                and lib.llama_memory_seq_pos_max(memory, slot) >= n_keep - 1
            )
            # Recurrent models cannot drop a part: False.
            if has_all and lib.llama_memory_seq_rm(memory, slot, n_keep, -1):
                return True
        lib.llama_memory_seq_rm(memory, slot, -1, -1)
        return n_keep == 0

    def draw(self, sampling: SamplingParams, seed: int) -> Draw:
        return make_draw(sampling, seed, self._weights)

    def open_embedding(self) -> LlamaEmbedding:
        return LlamaEmbedding(self._model, self._config, self.info, self._threads())

    def close(self) -> None:
        if hasattr(self, "vocabulary"):
            self.vocabulary.close()
        context, self._context = self._context, None
        if context is not None:
            lib.llama_free(context)
        model, self._model = self._model, None
        if model is not None:
            lib.llama_model_free(model)

    def _load_model(self, stopping: Callable[[], bool]) -> Any:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = self._config.n_gpu_layers
        if not self._config.use_mmap:
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        path = self._config.model
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelLoadFailed(path, "it is not a GGUF file")
        go_on = lib.llama_progress_callback(lambda progress, _: not stopping())
        params.progress_callback = go_on
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model and stopping():
            raise EngineStopped
        if not model:
            raise ModelLoadFailed(path, "llama.cpp cannot load it; its log says why (DEBUG)")
        if lib.llama_model_has_encoder(model) or lib.llama_model_is_diffusion(model):
            lib.llama_model_free(model)
            raise ModelLoadFailed(path, "encoder-decoder and diffusion models are not supported")
        return model

    def _open_context(self) -> None:
        model, config = self._model, self._config
        can_generate = meta(model, f"{arch(model)}.attention.causal") != "false"
        bytes_per_token = kv_bytes_per_token(model, config)
        budget = config.kv_memory or int(free_memory() * KV_SHARE)
        plan = plan_context(
            n_ctx_train=lib.llama_model_n_ctx_train(model),
            bytes_per_token=bytes_per_token,
            budget_bytes=budget,
            n_ctx=config.n_ctx,
            n_parallel=config.n_parallel,
        )
        n_ctx, n_parallel = plan.n_ctx, plan.n_parallel
        n_bytes = n_parallel * n_ctx * bytes_per_token
        if config.kv_memory is not None and can_generate and n_bytes > config.kv_memory:
            reason = (
                f"{n_parallel} sequences of {n_ctx} tokens take {n_bytes / 2**20:.0f} MiB of keys"
                f" and values, more than kv_memory; lower n_ctx or n_parallel, or raise it"
            )
            raise ModelLoadFailed(config.model, reason)
        if lib.llama_model_rope_type(model) == lib.LLAMA_ROPE_TYPE_NONE:
            # Learned positions end where the training did.
            n_ctx = min(n_ctx, lib.llama_model_n_ctx_train(model))
        if n_parallel > lib.llama_max_parallel_sequences():
            most = lib.llama_max_parallel_sequences()
            raise ModelLoadFailed(config.model, f"n_parallel is {n_parallel}, at most {most}")
        self._n_swa = lib.llama_model_n_swa(model)
        if can_generate:
            self._context = self._new_context(n_ctx, n_parallel)
            self._memory = lib.llama_get_memory(self._context)
            # The context is rounded up; what was asked for is the bound.
            n_ctx = min(n_ctx, lib.llama_n_ctx_seq(self._context))
            self.n_batch: int = lib.llama_n_batch(self._context)
            self._batch = CBatch(self.n_batch)
        else:
            self.n_batch = config.n_batch
            n_ctx, n_parallel = min(n_ctx, lib.llama_model_n_ctx_train(model)), 1
        self.info = ModelInfo(
            path=str(config.model),
            description=text_of(lib.llama_model_desc, model),
            n_params=lib.llama_model_n_params(model),
            n_vocab=self.vocabulary.n_tokens,
            n_embd=lib.llama_model_n_embd_out(model),
            n_ctx_train=lib.llama_model_n_ctx_train(model),
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            can_generate=can_generate,
            chat_template=chat_template(model),
            bos_token=self.vocabulary.bos_text,
            eos_token=self.vocabulary.eos_text,
            sampling_defaults=sampling_defaults(model),
        )
        logger.info(
            "%s (%s): %d sequences of %d tokens; at %.1f KiB a token that is %.0f MiB of keys and"
            " values, with %.0f MiB to take", config.model.name, self.info.description, n_parallel,
            n_ctx, bytes_per_token / 2**10, n_parallel * n_ctx * bytes_per_token / 2**20,
            budget / 2**20,
        )  # fmt: skip
        if can_generate:
            self._warm_up()

    def _new_context(self, n_ctx: int, n_parallel: int) -> Any:
        config = self._config
        params = lib.llama_context_default_params()
        # Each stream's cells are padded to 256.
        params.n_ctx = -(-n_ctx // 256) * 256 * n_parallel
        params.n_batch = max(config.n_batch, n_parallel)
        params.n_ubatch = min(config.n_ubatch, params.n_batch)
        params.n_seq_max = n_parallel
        params.n_threads, params.n_threads_batch = self._threads()
        params.kv_unified = False
        params.no_perf = True
        if config.flash_attn is not None:
            params.flash_attn_type = int(config.flash_attn)
        if config.flash_attn is False and config.cache_type_v != "f16":
            reason = f"cache_type_v {config.cache_type_v!r} needs flash_attn"
            raise ModelLoadFailed(config.model, reason)
        params.type_k = _CACHE_TYPES[config.cache_type_k]
        params.type_v = _CACHE_TYPES[config.cache_type_v]
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise ModelLoadFailed(
                config.model,
                f"llama.cpp cannot make a context of {n_parallel} sequences of {n_ctx} tokens, with"
                f" keys as {config.cache_type_k} and values as {config.cache_type_v}; lower n_ctx"
                " or n_parallel, or see its log for another reason",
            )
        return context

    def _threads(self) -> tuple[int, int]:
        n = self._config.n_threads or physical_cores()
        return n, self._config.n_threads_batch or n

    def _warm_up(self) -> None:
        """Touch the weights, so that the first request does not pay for it."""
        n = min(self.n_batch, 16)
        one = Batch(
            tokens=np.zeros(n, np.int32),
            positions=np.arange(n, dtype=np.int32),
            slots=np.zeros(n, np.int32),
            outputs=np.zeros(n, np.int8),
        )
        one.outputs[-1] = 1
        self.decode(one)
        self.truncate(0, 0)
