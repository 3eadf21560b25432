"""A model that may end the process is first tried in one of its own, on the CPU.

Most of llama.cpp's assertions are met while a graph is built, for which no weights are needed: a
large model's are not read. Knows the file and the engine's settings, and nothing of who asks.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import llama_cpp as lib
import numpy as np

from openai_local.engine.backend import Batch
from openai_local.engine.config import EngineConfig
from openai_local.engine.errors import EngineError, EngineStopped, ModelLoadFailed
from openai_local.engine.llama.context import new_context
from openai_local.engine.llama.library import prepare_process
from openai_local.engine.llama.vocabulary import LlamaVocabulary
from openai_local.engine.loading import Loading
from openai_local.engine.memory import ContextPlan

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_SAID_BYTES = 1 << 16
_TEXT = "hi \x01 ✓ é, and so on: 12 + 3"
_N_CTX = 256
_MOST_TOKENS = 40
# A larger model would be read twice, and computed for long.
_COMPUTED_BYTES = 1 << 30
_RUN = (
    "import json, sys; places, part, path, options = json.loads(sys.argv[1]); sys.path[:] = places;"
    "from openai_local.engine.llama import trial; getattr(trial, part)(path, options);"
    "sys.stdout.write('survived')"
)
_SURVIVED = b"survived"
_FAILED = 1  # what Python ends with after an exception
_REASON = re.compile(rb"GGML_ASSERT\(.*\) failed|what\(\):.*|[^/\s]*: fatal error")
# It has no part of a GPU, where others may compute, and calls no debugger.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "GGML_NO_BACKTRACE": "1",
}


def try_out(config: EngineConfig, loading: Loading, n_bytes: int) -> None:
    """Load the model of ``n_bytes`` in another process, and compute a few tokens if it is small.

    Raises ModelLoadFailed where that does not survive it, EngineStopped where the load is given
    up. What is only refused there will be refused here, too.
    """
    if not re.match(r"(python|pypy)", Path(sys.executable or "").name):
        logger.warning("%s is not tried out: %r is no Python", config.model, sys.executable)
        return
    part = compute if n_bytes <= _COMPUTED_BYTES else build
    logger.info("%s: trying it out in a process of its own", config.model.name)
    try:
        with tempfile.TemporaryFile() as file:
            status = _run(part.__name__, config, loading, file)
            file.seek(max(0, file.tell() - _SAID_BYTES))
            said = file.read()
    except OSError as error:  # no place for a file, or no more processes
        status, said = _FAILED, str(error).encode()
    if said.endswith(_SURVIVED):
        return
    if status == _FAILED:
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        logger.warning("%s could not be tried out: %s", config.model, reason)
        return
    found = _REASON.search(said)
    why = found.group().decode(errors="replace")[:200] if found else _ended(status)
    raise ModelLoadFailed(config.model, f"llama.cpp does not survive it: {why}")


def _ended(status: int) -> str:
    with suppress(ValueError):
        return f"it ends with {signal.Signals(-status).name}"
    return f"it ends with {status}"


def _run(part: str, config: EngineConfig, loading: Loading, said: IO[bytes]) -> int:
    """How the process ended. A host may have taken that away: then it is 0."""
    argument = json.dumps([sys.path, part, str(config.model.absolute()), _options(config)])
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _RUN, argument],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        env=os.environ | _ENVIRONMENT,
    )
    try:
        while child.poll() is None:
            if loading():
                raise EngineStopped
            time.sleep(_POLL_S)
    finally:
        child.kill()
        status = child.wait()
    return status


def _options(config: EngineConfig) -> dict[str, Any]:
    """Small, and otherwise as it will be here."""
    return {
        "n_ctx": min(config.n_ctx or _N_CTX, _N_CTX),
        "n_parallel": 2,
        "n_threads": config.n_threads,
        "n_batch": min(config.n_batch, _N_CTX),
        "n_ubatch": min(config.n_ubatch, _N_CTX),
        "n_gpu_layers": 0,
        "flash_attn": config.flash_attn,
        "kv_unified": config.kv_unified,
        "cache_type_k": config.cache_type_k,
        "cache_type_v": config.cache_type_v,
    }


def build(path: str, options: dict[str, Any]) -> None:
    """In the other process: the vocabulary and the graphs, without weights."""
    prepare_process()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mode, params.no_alloc = lib.LLAMA_LOAD_MODE_NONE, True
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return
    if lib.llama_vocab_type(lib.llama_model_get_vocab(model)) != lib.LLAMA_VOCAB_TYPE_NONE:
        _read(LlamaVocabulary(model))
    config = EngineConfig(Path(path), **options)
    plan = ContextPlan(_N_CTX, 2, 2 * _N_CTX)
    with suppress(EngineError):
        new_context(model, config, plan, 2, (1, 1))
    embeds = lib.llama_context_default_params()
    embeds.n_ctx = embeds.n_batch = embeds.n_ubatch = _N_CTX
    embeds.embeddings = embeds.kv_unified = True
    lib.llama_init_from_model(model, embeds)


def _read(vocabulary: LlamaVocabulary) -> list[int]:
    """Some tokens of it."""
    for token in range(vocabulary.n_tokens):
        vocabulary.spelling(token)
    return vocabulary.tokenize(_TEXT, add_special=True, parse_special=True)[:_MOST_TOKENS]


def compute(path: str, options: dict[str, Any]) -> None:
    """In the other process: all that the host's would do with any model."""
    from openai_local.engine.llama.model import LlamaBackend

    try:
        backend = LlamaBackend(EngineConfig(Path(path), **options), is_trial=True)
    except EngineError:
        return
    tokens = _read(backend.vocabulary)[: backend.info.n_ctx - 1]
    if not tokens:
        return
    try:
        if backend.info.can_generate:
            backend.start(_batch(tokens, 0))
            backend.rows()
            backend.copy(0, 1)
            for _ in range(2):
                backend.start(_batch(tokens[:1], 1, len(tokens)))
                backend.rows()
                backend.truncate(1, len(tokens))
        embedding = backend.open_embedding()
        embedding.embed(_batch(tokens, 0))
    except EngineError:
        return


def _batch(tokens: list[int], slot: int, start: int = 0) -> Batch:
    n = len(tokens)
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(start, start + n, dtype=np.int32),
        slots=np.full(n, slot, np.int32),
        outputs=np.ones(n, np.int8),
    )
