"""What several engines make that share a machine's cores, each in a process of its own.

python benchmarks/crowded.py --model model.gguf [--engines 2] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from pathlib import Path

from openai_local.engine import Engine, EngineConfig, GenerationRequest

N_TOKENS = 40


async def generate(model: Path, seconds: float) -> float:
    """Tokens per second of one stream after another, in an engine with its default threads."""
    async with Engine(EngineConfig(model, n_ctx=1024, n_parallel=2)) as engine:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        request = GenerationRequest(engine.tokenize("Once upon a time"), max_tokens=N_TOKENS)
        began, n = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            async for _ in engine.submit(request):
                n += 1
        return n / (time.monotonic() - began)


def together(n: int, model: Path, seconds: float) -> list[float]:
    """Tokens per second of each of ``n`` engines that begin at once."""
    command = [sys.executable, __file__, "--model", str(model), "--seconds", str(seconds)]
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen([*command, "--engines", "0"], stdin=pipe, stdout=pipe, text=True)
        for _ in range(n)
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return [float(child.communicate(timeout=60 + 10 * seconds)[0]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engines", type=int, default=2, help="0: one, for another process")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    if args.engines == 0:
        print(asyncio.run(generate(args.model, args.seconds)))
        return 0
    for n in sorted({1, args.engines}):
        rates = ", ".join(f"{rate:.1f}" for rate in together(n, args.model, args.seconds))
        print(f"{n} at once: {rates} tokens/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
