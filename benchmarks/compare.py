"""Runs the workloads of `workloads.py` against this project's server and its peers, in turns.

    python benchmarks/compare.py --model model.gguf --peer-command 'llama-server=llama-server ...'

Prints a table of medians, and our ratios to the first peer: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from comparison import end, measured, parsed, run_options
from picture import draw
from ratios import Ratio
from servers import Server, server_options
from throughput import SETTLE_S, markdown, percentile
from workloads import WORKLOADS, Outcome, Target

HEADINGS = (
    "workload", "server", "seconds", "tokens/s", "TTFT p50 ms", "gap p50", "gap p99", "cached",
    "long s", "errors",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figures:
    """One round of one server: seconds, tokens per second, milliseconds, counts."""

    wall_s: float
    tokens_per_s: float
    ttft_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    cached: float
    long_s: float
    n_errors: int

    @classmethod
    def of(cls, outcome: Outcome) -> Figures:
        good = [sample for sample in outcome.samples if sample.error is None]
        gaps = [1000 * gap_s for sample in good for gap_s in sample.gaps_s]
        n_prompt = sum(sample.n_prompt_tokens for sample in good)
        return cls(
            wall_s=outcome.wall_s,
            tokens_per_s=sum(sample.n_output_tokens for sample in good) / outcome.wall_s,
            ttft_ms=percentile([1000 * sample.ttft_s for sample in good], 0.5),
            gap_p50_ms=percentile(gaps, 0.5),
            gap_p99_ms=percentile(gaps, 0.99),
            cached=sum(sample.n_cached_tokens for sample in good) / (n_prompt or 1),
            long_s=outcome.others.get("long", 0.0),
            n_errors=len(outcome.samples) - len(good),
        )


Rounds = dict[tuple[str, str], list[Figures]]


def measure(servers: Sequence[Server], args: argparse.Namespace) -> Rounds:
    """Every workload on every server, `args.rounds` times, in alternating order."""
    rounds: Rounds = {}
    for name in args.workloads:
        for index in range(args.rounds):
            for server in servers if index % 2 == 0 else reversed(servers):
                assert server.model is not None, "a warm server has named its models"
                time.sleep(SETTLE_S)
                target = Target(server.endpoint, server.model)
                outcome = asyncio.run(WORKLOADS[name](target, f"{args.seed}/{name}/{index}"))
                rounds.setdefault((name, server.name), []).append(Figures.of(outcome))
                errors = {sample.error for sample in outcome.samples} - {None}
                print(
                    f"{name}, round {index + 1}, {server.name}: {outcome.wall_s:.1f} s",
                    *errors,
                    file=sys.stderr,
                )
    return rounds


def row(name: str, server: str, figures: Sequence[Figures]) -> list[str]:
    def mid(field: str) -> float:
        return float(median(getattr(each, field) for each in figures))

    return [
        name,
        server,
        f"{mid('wall_s'):.1f}",
        f"{mid('tokens_per_s'):.1f}",
        f"{mid('ttft_ms'):.0f}",
        f"{mid('gap_p50_ms'):.1f}",
        f"{mid('gap_p99_ms'):.1f}",
        f"{mid('cached'):.0%}",
        f"{mid('long_s'):.1f}" if mid("long_s") else "",
        str(sum(each.n_errors for each in figures)),
    ]


def ratios(rounds: Rounds, ours: str, theirs: str) -> list[Ratio]:
    """Those of all workloads, without the rounds in which a request failed."""
    found: list[Ratio] = []
    for name in dict.fromkeys(name for name, _ in rounds):
        pairs = [
            (mine, other)
            for mine, other in zip(rounds[name, ours], rounds[name, theirs], strict=True)
            if not mine.n_errors and not other.n_errors
        ]
        if name == "storm":
            gaps = [mine.gap_p99_ms / other.gap_p99_ms for mine, other in pairs]
            longs = [mine.long_s / other.long_s for mine, other in pairs]
            found.append(Ratio(name, "gap p99", gaps, less_is_better=True))
            found.append(Ratio(name, "long prompts' time", longs, less_is_better=True))
        elif name == "choices":  # some servers count one choice's tokens only
            found.append(Ratio(name, "requests/s", [b.wall_s / a.wall_s for a, b in pairs]))
        else:
            speeds = [mine.tokens_per_s / other.tokens_per_s for mine, other in pairs]
            found.append(Ratio(name, "tokens/s", speeds))
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Runs real workloads against this project's server and its peers."
    )
    server_options(parser.add_argument_group("servers"))
    names = list(WORKLOADS)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"of {', '.join(names)} (default all)")  # fmt: skip
    run_options(parser, rounds=3)
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="draw the ratios, as .svg or .png (needs matplotlib)")  # fmt: skip
    return parsed(parser)


def main() -> int:
    args = arguments()
    found = measured(args, measure)
    if found is None:
        return 1
    (ours, *peers), rounds = found
    print(markdown([list(HEADINGS), *(row(*key, each) for key, each in rounds.items())]))
    compared = {peer: ratios(rounds, ours, peer) for peer in peers}
    for peer, found in compared.items():
        print(*(ratio.line(ours, peer) for ratio in found), sep="\n")
    end(args, "workload", rounds, asdict)
    if args.picture and peers:
        draw(compared, ours, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
