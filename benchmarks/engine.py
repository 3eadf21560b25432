"""Compares the engine without HTTP with llama.cpp's own batched benchmark, in turns.

    python benchmarks/engine.py --model model.gguf --bench llama-batched-bench --rounds 3

Both compute the prompts of so many sequences and then so many tokens of each; the engine also
samples them, makes text of them and delivers it to an event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from servers import machine, positive
from throughput import SETTLE_S, markdown

from openai_local.engine import Engine, EngineConfig, GenerationRequest, SamplingParams

HEADINGS = (
    *("sequences", "tokens/s", "llama-batched-bench", "ratio (range)", "decode steps"),
    *("ms/step", "llama.cpp", "rest"),
)
# Cells come in blocks of this many.
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Run:
    """All tokens, prompts and continuations, over all seconds; the engine's also by their use."""

    n_sequences: int
    tokens_per_s: float
    wall_s: float
    n_decodes: int = 0
    llama_s: float = 0.0  # in decodes of running sequences
    prefill_s: float = 0.0

    @property
    def rest_s(self) -> float:
        """Neither of the two: scheduling, sampling, text, delivery, and waiting for the GIL."""
        return self.wall_s - self.llama_s - self.prefill_s


def bench(args: argparse.Namespace, n: int) -> Run:
    """One run of llama-batched-bench, in the layout of the engine's streams."""
    n_ctx = context(args) * n
    command = [
        *shlex.split(args.bench), "-m", str(args.model), "-c", str(n_ctx), "-npl", str(n),
        "-npp", str(args.prompt), "-ntg", str(args.tokens), "--output-format", "jsonl",
        "-b", str(args.n_batch), "-t", str(args.threads), "-tb", str(args.threads),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    figures = json.loads(line)
    return Run(n, figures["speed"], figures["t"])


async def engine_run(engine: Engine, args: argparse.Namespace, n: int, seed: str) -> Run:
    """So many generations at once, with prompts that nothing was computed of before."""
    draw = random.Random(seed)
    n_vocab = engine.info.n_vocab
    requests = [
        GenerationRequest(
            [draw.randrange(n_vocab // 2, n_vocab) for _ in range(args.prompt)],
            # The first token comes with the prompt: so many decodes follow.
            max_tokens=args.tokens + 1,
            sampling=SamplingParams(temperature=args.temperature, seed=i, ignore_eos=True),
        )
        for i in range(n)
    ]

    async def read(request: GenerationRequest) -> None:
        async for _ in engine.submit(request):
            pass

    before = engine.metrics()
    start_s = time.perf_counter()
    await asyncio.gather(*map(read, requests))
    wall_s = time.perf_counter() - start_s
    after = engine.metrics()
    return Run(
        n,
        n * (args.prompt + args.tokens) / wall_s,
        wall_s,
        after.decode_steps_total - before.decode_steps_total,
        after.decode_seconds_total - before.decode_seconds_total,
        after.prefill_seconds_total - before.prefill_seconds_total,
    )


def context(args: argparse.Namespace) -> int:
    return -(-(args.prompt + args.tokens + 1) // BLOCK) * BLOCK


async def measure(args: argparse.Namespace, n: int) -> tuple[list[Run], list[Run]]:
    config = EngineConfig(
        args.model,
        n_ctx=context(args),
        n_parallel=n,
        n_threads=args.threads,
        n_batch=args.n_batch,
        cache_ram=0,
        target_itl_ms=args.target_itl_ms,
    )
    ours, theirs = [], []
    async with Engine(config) as engine:
        await engine_run(engine, args, n, "warm")
        for index in range(args.rounds):
            for take_ours in (True, False) if index % 2 == 0 else (False, True):
                time.sleep(SETTLE_S)
                if take_ours:
                    ours.append(await engine_run(engine, args, n, f"{args.seed}/{index}"))
                else:
                    theirs.append(bench(args, n))
            print(
                f"{n} sequences, round {index + 1}: {ours[-1].tokens_per_s:.1f} tokens/s,"
                f" llama-batched-bench {theirs[-1].tokens_per_s:.1f}",
                file=sys.stderr,
            )
    return ours, theirs


def row(ours: Sequence[Run], theirs: Sequence[Run]) -> list[str]:
    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, theirs, strict=True)]

    def per_step_ms(seconds: Sequence[float]) -> str:
        steps = (run.n_decodes for run in ours)
        return f"{statistics.median(1000 * s / n for s, n in zip(seconds, steps, strict=True)):.2f}"

    return [
        str(ours[0].n_sequences),
        f"{statistics.median(run.tokens_per_s for run in ours):.1f}",
        f"{statistics.median(run.tokens_per_s for run in theirs):.1f}",
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})",
        str(ours[-1].n_decodes),
        per_step_ms([run.llama_s + run.rest_s for run in ours]),
        per_step_ms([run.llama_s for run in ours]),
        per_step_ms([run.rest_s for run in ours]),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compares the engine without HTTP with llama-batched-bench."
    )
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--bench", required=True, metavar="CMD", help="llama-batched-bench")
    parser.add_argument("--sequences", type=positive, nargs="+", default=[1, 8, 32, 128],
                        metavar="N", help="default 1 8 32 128")  # fmt: skip
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="default 2")
    parser.add_argument("--n-batch", type=positive, default=2048, metavar="N", help="default 2048")
    parser.add_argument("--prompt", type=positive, default=128, metavar="N",
                        help="tokens of a prompt (default 128)")  # fmt: skip
    parser.add_argument("--tokens", type=positive, default=64, metavar="N",
                        help="tokens of a continuation (default 64)")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.8, help="default 0.8; 0 is greedy")
    parser.add_argument("--target-itl-ms", type=float, default=100.0, metavar="MS",
                        help="the engine's setting (default 100)")  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default 3")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    results = [asyncio.run(measure(args, n)) for n in args.sequences]
    print(markdown([HEADINGS, *(row(*result) for result in results)]))
    print("(" + ", ".join(f"{key} {value}" for key, value in machine().items()) + ")")
    if args.json:
        rounds = [
            {"engine": asdict(mine), "llama-batched-bench": asdict(other)}
            for result in results
            for mine, other in zip(*result, strict=True)
        ]
        content = {"machine": machine(), "command": shlex.join(sys.argv), "rounds": rounds}
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
