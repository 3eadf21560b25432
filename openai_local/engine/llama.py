"""LlamaBackend: the only module that imports llama_cpp. Engine thread only, but the vocabulary.

Wire facts are from ``llama.h``; a GGML assertion aborts the whole process, so nothing unchecked
may reach it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from openai_local.engine.backend import Batch, DecodeFailed, Draw, Floats
from openai_local.engine.config import EngineConfig
from openai_local.engine.draw import Weights, make_draw
from openai_local.engine.errors import EngineStopped, ModelLoadFailed, Unsupported
from openai_local.engine.machine import free_memory, physical_cores
from openai_local.engine.memory import plan_context
from openai_local.engine.messages import ModelInfo, SamplingParams

logger = logging.getLogger(__name__)
native_logger = logging.getLogger("openai_local.llama_cpp")

_DECODE_REASONS = {
    1: "no place in the KV memory",
    2: "aborted",
    -1: "invalid batch",
    -2: "allocation failed",
    -3: "computation failed",
}
_SAMPLING_KEYS = ("temp", "top_p", "top_k", "min_p")
# Some vocabularies split words with std::regex, which recurses once a character: a run of 20,000
# to 60,000 letters overflows a stack of 8 MiB and ends the process.
# The classes are C++'s: Python's \s has more characters.
_LONG_RUN = re.compile(r"[^\t-\r ]{4097,}|[\t-\r ]{4097,}")
_MAX_RUN = 4096
MANY_SPECIALS = 512
# llama.cpp's log is chatty: its info is our debug, its warnings are for its own developers.
_LEVELS = {2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}

_process_lock = threading.Lock()
_process_ready = False


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: object) -> None:
    number = _LEVELS.get(level, logging.DEBUG)  # level 5 continues a line
    if native_logger.isEnabledFor(number):
        native_logger.log(number, "%s", text.decode(errors="replace").rstrip())


def _prepare_process() -> None:
    """llama.cpp's own process-wide state: its backends and its log, set up once."""
    global _process_ready
    with _process_lock:
        if not _process_ready:
            lib.llama_log_set(_log, ctypes.c_void_p(0))
            lib.llama_backend_init()
            _process_ready = True


def quantize_q8_0(source: Path, target: Path) -> None:
    """Write ``source``, whatever its quantisation, as Q8_0. Raises ModelLoadFailed."""
    _prepare_process()
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    params.nthread = physical_cores()
    code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), params)
    if code != 0:
        raise ModelLoadFailed(source, f"requantising returned {code}")


class LlamaVocabulary:
    """The model's vocabulary; free to every thread until the model is closed."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self._condition = threading.Condition()
        self._n_users = 0
        self._closed = False
        self._pieces: dict[int, bytes] = {}
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        hidden = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        control: list[str] = []
        eog: list[int] = []
        for token in range(self.n_tokens):
            if lib.llama_vocab_is_eog(self._vocab, token):
                eog.append(token)
            if lib.llama_vocab_get_attr(self._vocab, token) & hidden:
                control.append(self._text(token))
        self.control_tokens: Sequence[str] = tuple(text for text in control if text)
        self._eog = tuple(eog)
        self._eog_set = frozenset(eog)
        bos = lib.llama_vocab_bos(self._vocab)
        eos = lib.llama_vocab_eos(self._vocab)
        self._bos: int | None = (
            bos if bos >= 0 and lib.llama_vocab_get_add_bos(self._vocab) else None
        )
        self._eos: int | None = (
            eos if eos >= 0 and lib.llama_vocab_get_add_eos(self._vocab) else None
        )
        self._is_bpe = lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_BPE
        texts = sorted(self.control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        self.bos_text = self._text(bos) if bos >= 0 else ""
        self.eos_text = self._text(eos) if eos >= 0 else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. Raises EngineStopped once the model is closed."""
        risky = len(text) > _MAX_RUN and (_LONG_RUN.search(text) or self._is_costly(text))
        if not (self._is_bpe and risky):
            return self._tokenize(text, add_special, parse_special)
        tokens = [self._bos] if add_special and self._bos is not None else []
        at = 0
        for match in self._control.finditer(text) if parse_special and self._control else ():
            tokens += self._tokenize_plain(text[at : match.start()])
            tokens += self._tokenize(match.group(), False, True)
            at = match.end()
        tokens += self._tokenize_plain(text[at:])
        if add_special and self._eos is not None:
            tokens.append(self._eos)
        return tokens

    def _is_costly(self, text: str) -> bool:
        """llama.cpp's search for special tokens takes time with the square of their number."""
        return self._control is not None and len(self._control.findall(text)) > MANY_SPECIALS

    def _tokenize_plain(self, text: str) -> list[int]:
        tokens: list[int] = []
        for piece in _bounded_runs(text):
            tokens += self._tokenize(piece, False, False)
        return tokens

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        with self._open():
            n_max = len(data) + 8
            buffer = (lib.llama_token * n_max)()
            n = lib.llama_tokenize(
                self._vocab, data, len(data), buffer, n_max, add_special, parse_special
            )
            if n < 0:
                buffer = (lib.llama_token * -n)()
                n = lib.llama_tokenize(
                    self._vocab, data, len(data), buffer, -n, add_special, parse_special
                )
            return list(buffer[:n])

    def bos(self) -> int | None:
        return self._bos

    def piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            with self._open():
                piece = self._pieces[token] = self._read_piece(token)
        return piece

    def is_eog(self, token: int) -> bool:
        return token in self._eog_set

    def eog_tokens(self) -> Sequence[int]:
        return self._eog

    def close(self) -> None:
        """Wait for those inside, let nobody else in."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: self._n_users == 0)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._condition:
            if self._closed:
                raise EngineStopped
            self._n_users += 1
        try:
            yield
        finally:
            with self._condition:
                self._n_users -= 1
                self._condition.notify_all()

    def _text(self, token: int) -> str:
        text: bytes = lib.llama_vocab_get_text(self._vocab, token) or b""
        return text.decode(errors="replace")

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            size = -n


def _bounded_runs(text: str) -> Iterator[str]:
    """``text`` in pieces, cut only within long runs of letters or of spaces."""
    start = 0
    for match in _LONG_RUN.finditer(text):
        for cut in range(match.start() + _MAX_RUN, match.end(), _MAX_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]


class _CBatch:
    """llama_batch over numpy arrays of our own: filling it is four copies."""

    def __init__(self, n_max: int) -> None:
        self.tokens = np.zeros(n_max, np.int32)
        self.positions = np.zeros(n_max, np.int32)
        self.outputs = np.zeros(n_max, np.int8)
        self.slots = np.zeros(n_max, np.int32)
        self._n_seq_id = np.ones(n_max, np.int32)
        start, step = self.slots.ctypes.data, self.slots.itemsize
        self._seq_id = np.arange(n_max, dtype=np.uintp) * step + start
        self.struct = lib.llama_batch(
            0,
            _pointer(self.tokens, ctypes.c_int32),
            None,
            _pointer(self.positions, ctypes.c_int32),
            _pointer(self._n_seq_id, ctypes.c_int32),
            ctypes.cast(self._seq_id.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            _pointer(self.outputs, ctypes.c_int8),
        )

    def fill(self, batch: Batch) -> Any:
        n = len(batch)
        self.tokens[:n] = batch.tokens
        self.positions[:n] = batch.positions
        self.slots[:n] = batch.slots
        self.outputs[:n] = batch.outputs
        self.struct.n_tokens = n
        return self.struct


def _pointer(array: npt.NDArray[Any], ctype: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctype))


def _view(address: Any, rows: int, columns: int) -> Floats:
    """llama.cpp's memory as an array, without a copy."""
    if not address:
        raise DecodeFailed(0, "no output")
    array: Floats = np.ctypeslib.as_array(address, shape=(rows, columns))
    return array


def _decode(context: Any, batch: Any, call: Any = lib.llama_decode) -> None:
    code = call(context, batch)
    if code != 0:
        raise DecodeFailed(code, _DECODE_REASONS.get(code, "unknown"))


class LlamaBackend:
    """A model file, its weights, and a context in the streams layout, one stream a slot.

    Raises ModelLoadFailed, with a reason that names what is wrong.
    """

    def __init__(self, config: EngineConfig, stopping: Callable[[], bool] = lambda: False) -> None:
        """``stopping`` is asked while the file is read; when it holds, raises EngineStopped."""
        _prepare_process()
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
        _decode(self._context, self._batch.fill(batch))
        n_rows = int(np.count_nonzero(batch.outputs))
        if n_rows == 0:
            return np.empty((0, self.info.n_vocab), np.float32)
        return self._logits_view(n_rows)

    def _logits_view(self, n_rows: int) -> Floats:
        pointer = lib.llama_get_logits(self._context)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        # llama.cpp moves its buffer only to enlarge it; a view costs more than its use.
        if address != self._logits_at or n_rows > len(self._logits):
            self._logits = _view(pointer, n_rows, self.info.n_vocab)
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
        can_generate = _meta(model, f"{_arch(model)}.attention.causal") != "false"
        plan = plan_context(
            n_ctx_train=lib.llama_model_n_ctx_train(model),
            bytes_per_token=_kv_bytes_per_token(model),
            free_bytes=free_memory(),
            n_ctx=config.n_ctx,
            n_parallel=config.n_parallel,
        )
        n_ctx, n_parallel = plan.n_ctx, plan.n_parallel
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
            self._batch = _CBatch(self.n_batch)
        else:
            self.n_batch = config.n_batch
            n_ctx, n_parallel = min(n_ctx, lib.llama_model_n_ctx_train(model)), 1
        self.info = ModelInfo(
            path=str(config.model),
            description=_text(lib.llama_model_desc, model),
            n_params=lib.llama_model_n_params(model),
            n_vocab=self.vocabulary.n_tokens,
            n_embd=lib.llama_model_n_embd_out(model),
            n_ctx_train=lib.llama_model_n_ctx_train(model),
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            can_generate=can_generate,
            chat_template=_chat_template(model),
            bos_token=self.vocabulary.bos_text,
            eos_token=self.vocabulary.eos_text,
            sampling_defaults=_sampling_defaults(model),
        )
        logger.info(
            "%s (%s): %d sequences of %d tokens", config.model.name, self.info.description,
            n_parallel, n_ctx,
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
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise ModelLoadFailed(
                config.model,
                f"no memory for {n_parallel} sequences of {n_ctx} tokens;"
                " lower n_ctx or n_parallel",
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


class LlamaEmbedding:
    """A context for embeddings. Causal models are pooled here, so that an input may come in
    pieces; models that look ahead are pooled by llama.cpp, an input at once."""

    n_seq = 64

    def __init__(
        self, model: Any, config: EngineConfig, info: ModelInfo, threads: tuple[int, int]
    ) -> None:
        self.whole_inputs = not info.can_generate
        declared = _meta(model, f"{_arch(model)}.pooling_type")
        pooling = int(declared) if declared else lib.LLAMA_POOLING_TYPE_MEAN
        if pooling == lib.LLAMA_POOLING_TYPE_NONE:
            pooling = lib.LLAMA_POOLING_TYPE_MEAN
        if pooling == lib.LLAMA_POOLING_TYPE_RANK:
            raise Unsupported("embeddings: it is a reranker")
        self._pooling = pooling
        self.n_max = info.n_ctx
        self._n_embd = info.n_embd
        params = lib.llama_context_default_params()
        if self.whole_inputs:
            self.n_batch = max(config.n_ubatch, info.n_ctx, self.n_seq)
            params.n_ubatch = self.n_batch
            params.pooling_type = pooling
        else:
            # llama.cpp reserves an output for each sequence, and asserts that they fit the batch.
            self.n_batch = max(config.n_ubatch, self.n_seq)
            params.n_ubatch = self.n_batch
            params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        params.n_batch = self.n_batch
        params.n_ctx = max(self.n_batch, info.n_ctx)
        params.n_seq_max = self.n_seq
        params.kv_unified = True
        params.embeddings = True
        params.n_threads, params.n_threads_batch = threads
        params.no_perf = True
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise Unsupported("embeddings: llama.cpp cannot make their context")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = _CBatch(self.n_batch)

    def embed(self, batch: Batch) -> Floats:
        c_batch = self._batch.fill(batch)
        slots, starts, counts = np.unique(batch.slots, return_index=True, return_counts=True)
        if self.whole_inputs:
            _decode(self._context, c_batch, lib.llama_encode)
            return np.stack([self._pooled(int(slot)) for slot in slots])
        _decode(self._context, c_batch)
        rows = _view(lib.llama_get_embeddings(self._context), len(batch), self._n_embd)
        return np.stack([self._part(rows[a : a + n]) for a, n in zip(starts, counts, strict=True)])

    def pool(self, parts: Sequence[Floats], n_tokens: int) -> Floats:
        if self.whole_inputs or self._pooling == lib.LLAMA_POOLING_TYPE_CLS:
            return parts[0]
        if self._pooling == lib.LLAMA_POOLING_TYPE_LAST:
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
        return np.array(_view(vector, 1, self._n_embd)[0], np.float32)

    def _part(self, rows: Floats) -> Floats:
        if self._pooling == lib.LLAMA_POOLING_TYPE_CLS:
            return np.array(rows[0], np.float32)
        if self._pooling == lib.LLAMA_POOLING_TYPE_LAST:
            return np.array(rows[-1], np.float32)
        return np.asarray(rows.sum(axis=0, dtype=np.float64), np.float32)


def _text(call: Any, model: Any, *args: Any, size: int = 256) -> str:
    buffer = ctypes.create_string_buffer(size)
    n = call(model, *args, buffer, size)
    return buffer.value.decode(errors="replace") if n >= 0 else ""


def _meta(model: Any, key: str) -> str:
    return _text(lib.llama_model_meta_val_str, model, key.encode())


def _arch(model: Any) -> str:
    return _meta(model, "general.architecture")


def _chat_template(model: Any) -> str | None:
    template = lib.llama_model_chat_template(model, None)
    return template.decode(errors="replace") if template else None


def _sampling_defaults(model: Any) -> dict[str, float]:
    """The GGUF's own recommended sampling (``general.sampling.*``), where it carries one."""
    values = {key: _meta(model, f"general.sampling.{key}") for key in _SAMPLING_KEYS}
    return {key: float(value) for key, value in values.items() if value}


def _kv_bytes_per_token(model: Any) -> int:
    """Of an F16 KV memory: 2 bytes, keys and values of every layer's KV heads."""
    arch = _arch(model)
    n_head = max(1, lib.llama_model_n_head(model))
    head = lib.llama_model_n_embd(model) // n_head
    key = int(_meta(model, f"{arch}.attention.key_length") or head)
    value = int(_meta(model, f"{arch}.attention.value_length") or head)
    n_head_kv = max(1, lib.llama_model_n_head_kv(model))
    return int(2 * lib.llama_model_n_layer(model) * n_head_kv * (key + value))
