"""Loads model files, each in a process of its own, and prints what became of each, a line a file.

    python -m assets.load_all FILE …

ok, a refusal's reason, or the signal that ended the process.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import anyio

import openai_local.engine.llama  # noqa: F401  once, before the forks
from openai_local.engine import Engine, EngineConfig, EngineError, GenerationRequest, Unsupported

TIMEOUT_S = 60


async def use(path: Path) -> None:
    config = EngineConfig(path, n_ctx=64, n_parallel=2, n_threads=1, cache_ram=1 << 20)
    async with Engine(config) as engine:
        tokens = engine.vocabulary.tokenize("hi \x01 ✓ é", add_special=True, parse_special=True)
        tokens = tokens[:20] or [0]
        if engine.info.can_generate:
            async for _ in engine.submit(GenerationRequest(tokens, max_tokens=3)):
                pass
        try:
            await engine.embed([tokens, tokens[:1]])
        except Unsupported:
            pass


def outcome(path: Path) -> str:
    try:
        anyio.run(use, path)
    except EngineError as error:
        return " ".join(str(error).split())
    return "ok"


def in_a_fork(path: Path) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(TIMEOUT_S)
        code = 1
        try:
            os.write(write, outcome(path).encode()[:4000])
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    return said if ended == 0 else f"ended by {ended}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sys.stdout.write(in_a_fork(Path(name)) + "\n")
        sys.stdout.flush()
