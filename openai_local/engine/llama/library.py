"""llama.cpp's own process-wide state: its backends, its log; and what needs no context."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from pathlib import Path

import llama_cpp as lib

from openai_local.engine.errors import ModelLoadFailed
from openai_local.engine.gguf.check import read_checked
from openai_local.engine.machine import physical_cores

native_logger = logging.getLogger("openai_local.llama_cpp")

# llama.cpp's log is chatty: its info is our debug, its warnings are for its own developers.
_LEVELS = {2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}

_ERROR = 4
_errors = threading.local()  # a load logs on the thread that called it

_process_lock = threading.Lock()
_process_ready = False


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: object) -> None:
    number = _LEVELS.get(level, logging.DEBUG)  # level 5 continues a line
    if level == _ERROR:
        _errors.lines = [*getattr(_errors, "lines", ())[-9:], text.decode(errors="replace").strip()]
    if native_logger.isEnabledFor(number):
        native_logger.log(number, "%s", text.decode(errors="replace").rstrip())


def take_errors() -> list[str]:
    """What llama.cpp has logged as errors on this thread since this was last asked, at most 10."""
    lines, _errors.lines = getattr(_errors, "lines", []), []
    return lines


def prepare_process() -> None:
    """llama.cpp's own process-wide state: its backends and its log, set up once."""
    global _process_ready
    with _process_lock:
        if not _process_ready:
            lib.llama_log_set(_log, ctypes.c_void_p(0))
            lib.llama_backend_init()
            _process_ready = True


def quantize_q8_0(source: Path, target: Path) -> None:
    """Write ``source``, whatever its quantisation, as Q8_0. Raises ModelLoadFailed."""
    prepare_process()
    read_checked(source)
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    params.nthread = physical_cores()
    code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), params)
    if code != 0:
        raise ModelLoadFailed(source, f"requantising returned {code}")
