"""A model file, its weights, and a context for generation. Engine thread only."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import llama_cpp as lib
import numpy as np

from openai_local.engine.backend import Batch, Draw, Floats, State
from openai_local.engine.config import EngineConfig
from openai_local.engine.crowding import Threads
from openai_local.engine.draw import make_draw
from openai_local.engine.errors import EngineStopped, ModelLoadFailed
from openai_local.engine.gguf.check import is_searched, read_checked
from openai_local.engine.heap import release_memory
from openai_local.engine.llama.batch import CBatch, decode, view
from openai_local.engine.llama.context import measure_cost, new_context, plan_layout
from openai_local.engine.llama.devices import UNKNOWN_GPU, Placement, list_devices, place
from openai_local.engine.llama.embedding import LlamaEmbedding
from openai_local.engine.llama.library import prepare_process, take_errors
from openai_local.engine.llama.metadata import (
    arch,
    chat_template,
    file_digest,
    meta,
    pooling,
    sampling_defaults,
    text_of,
)
from openai_local.engine.llama.sampler_chain import SamplerChains
from openai_local.engine.llama.trial import try_out
from openai_local.engine.llama.vocabulary import LlamaVocabulary
from openai_local.engine.loading import Loading
from openai_local.engine.machine import physical_cores
from openai_local.engine.messages import ModelInfo, SamplingParams
from openai_local.engine.sampler_steps import needs_chain

logger = logging.getLogger(__name__)


class LlamaBackend:
    """A model file, its weights, and a context whose sequences are the slots.

    Raises ModelLoadFailed, with a reason that names what is wrong.
    """

    def __init__(
        self, config: EngineConfig, loading: Loading | None = None, *, is_trial: bool = False
    ) -> None:
        """``loading`` is asked while the file is read; when it gives up, raises EngineStopped. A
        model that may end the process is tried in another first, which ``is_trial``."""
        prepare_process()
        self._config = config
        self._context: Any = None
        self._logits: Floats = np.empty((0, 0), np.float32)
        self._logits_at: int | None = None
        self._n_rows = 0  # of what was started last
        # On a GPU the work is queued, and whoever asks for logits waits for it.
        self.asynchronous = config.n_gpu_layers != 0 and bool(lib.llama_supports_gpu_offload())
        n_threads = config.n_threads or physical_cores()
        self._threads = Threads(n_threads, config.n_threads_batch or n_threads)
        self._copying: set[int] = set()  # slots of copies that are not done yet
        self._model = self._load_model(loading or Loading(config.model.name), is_trial)
        try:
            vocabulary = lib.llama_model_get_vocab(self._model)
            if lib.llama_vocab_type(vocabulary) == lib.LLAMA_VOCAB_TYPE_NONE:
                raise ModelLoadFailed(config.model, "it has no vocabulary")
            self.vocabulary = LlamaVocabulary(self._model)
            self._room = np.empty(self.vocabulary.n_tokens, np.float32)  # of draws
            self._open_context()
            self._chains = SamplerChains(self._model, self.info.n_vocab, self.info.n_ctx)
        except BaseException:
            self.close()
            raise

    @property
    def fingerprint(self) -> str:
        context = (
            self._config.cache_type_k,
            self._config.cache_type_v,
            self._config.flash_attn,
            # A state of the streams layout tells how many there are.
            1 if self.unified else self.n_slots,
            lib.__version__,
        )
        return f"{file_digest(self._config.model)} {context}"

    def start(self, batch: Batch) -> None:
        decode(
            self._context,
            self._batch.fill(batch),
            # A GPU computes after the call.
            threads=None if self.asynchronous else self._threads,
        )
        self._copying.clear()
        self._n_rows = int(np.count_nonzero(batch.outputs))

    def rows(self) -> Floats:
        if self._n_rows == 0:
            lib.llama_synchronize(self._context)  # its time is measured
            return np.empty((0, self.info.n_vocab), np.float32)
        return self._logits_view(self._n_rows)

    def _logits_view(self, n_rows: int) -> Floats:
        pointer = lib.llama_get_logits(self._context)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        # llama.cpp moves its buffer only to enlarge it; a view costs more than its use.
        if address != self._logits_at or n_rows > len(self._logits):
            self._logits = view(pointer, n_rows, self.info.n_vocab)
            self._logits_at = address
        return self._logits[:n_rows]

    def copy(self, source: int, target: int) -> None:
        lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        if self.unified and self._n_swa:
            # llama.cpp never gives a window's cell back that two slots share: they would fill it.
            with suppress(MemoryError):
                state = self.save(source)
                if state is not None:
                    self.load(target, state)
            return
        # Across streams only a whole copy is possible; a partial one is an assertion.
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        if self._defers_copies:
            self._copying |= {source, target}

    def save(self, slot: int) -> State | None:
        if slot in self._copying:
            return None
        size = lib.llama_state_seq_get_size(self._context, slot)
        state = np.empty(size, np.uint8)
        n = lib.llama_state_seq_get_data(self._context, _bytes_at(state), size, slot)
        return state if 0 < n == size else None

    def load(self, slot: int, state: State) -> bool:
        # Copies between streams are done by the next decode: it would copy what is loaded now.
        if slot not in self._copying:
            size = state.nbytes
            n = lib.llama_state_seq_set_data(self._context, _bytes_at(state), size, slot)
            if 0 < n == size:
                return True
        lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return False

    def truncate(self, slot: int, n_keep: int) -> bool:
        memory = self._memory
        holds = n_keep > 0 and self._holds(slot, n_keep)
        if holds and lib.llama_memory_seq_rm(memory, slot, n_keep, -1):
            return True
        lib.llama_memory_seq_rm(memory, slot, -1, -1)
        return n_keep == 0

    def _holds(self, slot: int, n_keep: int) -> bool:
        """Whether the slot has all that a token after its first ``n_keep`` looks back to."""
        first = lib.llama_memory_seq_pos_min(self._memory, slot)
        last = lib.llama_memory_seq_pos_max(self._memory, slot)
        if self._stateful:
            return bool(last == n_keep - 1)  # a state is of all its tokens, or of no use
        first_needed = max(0, n_keep - self._n_swa + 1) if self._n_swa else 0
        return bool(0 <= first <= first_needed and last >= n_keep - 1)

    def draw(self, sampling: SamplingParams, seed: int, prompt: Sequence[int]) -> Draw:
        if needs_chain(sampling):
            return self._chains.draw(sampling, seed, prompt)
        return make_draw(sampling, seed, self._room)

    def open_embedding(self) -> LlamaEmbedding:
        return LlamaEmbedding(self._model, self._config, self.info, self._threads)

    def close(self) -> None:
        if hasattr(self, "vocabulary"):
            self.vocabulary.close()
        if hasattr(self, "_chains"):
            self._chains.close()
        context, self._context = self._context, None
        if context is not None:
            lib.llama_synchronize(context)  # a step that raised may have left work
            lib.llama_free(context)
        model, self._model = self._model, None
        if model is not None:
            lib.llama_model_free(model)
        release_memory()

    def _load_model(self, loading: Loading, is_trial: bool) -> Any:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = self._config.n_gpu_layers
        if not self._config.use_mmap:
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        path = self._config.model
        parts = read_checked(path)
        if is_trial:
            params.use_extra_bufts = False  # what would hold a copy of the weights
        elif not is_searched(parts[0]):
            try_out(self._config, loading, sum(part.n_bytes for part in parts))
        take_errors()

        def report(fraction: float, _: object) -> bool:
            loading.report(fraction)
            return not loading()

        go_on = lib.llama_progress_callback(report)
        params.progress_callback = go_on
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model and loading():
            raise EngineStopped
        if not model:
            # The first error is the reason, the others say where it led.
            reason = next(iter(take_errors()), "llama.cpp cannot load it")
            raise ModelLoadFailed(path, reason)
        if lib.llama_model_has_encoder(model) or lib.llama_model_is_diffusion(model):
            lib.llama_model_free(model)
            raise ModelLoadFailed(path, "encoder-decoder and diffusion models are not supported")
        return model

    def _open_context(self) -> None:
        model, config, placement = self._model, self._config, self._placement()
        causal = meta(model, f"{arch(model)}.attention.causal") != "false"
        counts = (self._threads.n, self._threads.n_batch)
        cost = measure_cost(model, config, counts) if causal else None
        plan = plan_layout(model, config, cost, placement)
        n_ctx, n_parallel = plan.n_ctx, plan.n_parallel
        self.unified, self.n_slots, self.n_cells = plan.unified, n_parallel, 0
        self.shares_cells = plan.unified
        if cost is not None:
            self._n_swa = cost.n_window
            self._stateful = cost.stateful
            self.shares_cells = plan.unified and not self._n_swa
            self._defers_copies = not plan.unified and cost.has_cells
            if self.shares_cells and not self._stateful:
                # Names of sequences cost nothing here, and idle ones keep what they computed.
                self.n_slots = min(2 * n_parallel, lib.llama_max_parallel_sequences())
            self._context = new_context(model, config, plan, self.n_slots, counts)
            self._memory = lib.llama_get_memory(self._context)
            # The context is rounded up; what was asked for is the bound.
            n_ctx = min(n_ctx, lib.llama_n_ctx_seq(self._context))
            self.n_cells = plan.n_cells
            self.n_batch: int = lib.llama_n_batch(self._context)
            self._batch = CBatch(self.n_batch)
            self.n_drop_max = self._most_to_drop(n_ctx)
        else:
            self.n_batch, self.n_drop_max = config.n_batch, n_ctx
            n_parallel = 1
        self.info = ModelInfo(
            path=str(config.model),
            description=text_of(lib.llama_model_desc, model),
            n_params=lib.llama_model_n_params(model),
            n_vocab=self.vocabulary.n_tokens,
            n_embd=lib.llama_model_n_embd_out(model),
            n_ctx_train=lib.llama_model_n_ctx_train(model),
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            can_generate=cost is not None,
            chat_template=chat_template(model),
            bos_token=self.vocabulary.bos_text,
            eos_token=self.vocabulary.eos_text,
            sampling_defaults=sampling_defaults(model),
            can_rank=pooling(model) == lib.LLAMA_POOLING_TYPE_RANK,
            rerank_template=chat_template(model, b"rerank"),
            n_layers=placement.n_layers,
            n_gpu_layers=placement.n_gpu_layers,
            gpus=placement.gpus,
            n_bytes_weights=lib.llama_model_size(model),
            n_bytes_kv=int(cost.total(plan)) if cost else 0,
        )
        logger.info("%s: %s", config.model.name, self.info.description)
        if cost is not None:
            self._warm_up()

    def _placement(self) -> Placement:
        devices = (list_devices() or (UNKNOWN_GPU,)) if self.asynchronous else ()
        return place(self._config.n_gpu_layers, lib.llama_model_n_layer(self._model), devices)

    def _most_to_drop(self, n_ctx: int) -> int:
        if self._stateful:
            return 0
        if not 0 < self._n_swa < n_ctx:
            return n_ctx
        # What a window has left behind may be gone a batch later.
        return min(self._config.n_ubatch, self.n_batch, n_ctx - 1)

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
        self.start(one)
        self.rows()
        self.truncate(0, 0)


def _bytes_at(state: State) -> Any:
    return ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
