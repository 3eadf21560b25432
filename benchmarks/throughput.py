"""Compares this project's server with others under the same load, on the same machine.

    python benchmarks/throughput.py --model model.gguf --peer llama-server=http://127.0.0.1:8090/v1

Starts our server, drives every server in turn with the same prompts, and prints one table: output
tokens per second, time to first token, and the gaps between chunks. Knows no server's insides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load import Round, Shape, chat_body, drive, prompts
from servers import (
    Server,
    ServerFailed,
    check_servers,
    cpu_time_s,
    machine,
    positive,
    running,
    server_options,
)

# Between two servers' turns: worker threads spin for a moment after their last decode.
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one server at one concurrency; times in milliseconds."""

    tokens_per_s: list[float]
    ttft_ms: list[float]
    gap_ms: list[float]
    n_requests: int
    n_prompt_tokens: int
    n_cached_tokens: int
    n_output_tokens: int
    n_errors: int
    client_cpu: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Summary:
        answered = [sample for each in rounds for sample in each.answered]
        return cls(
            tokens_per_s=[each.output_tokens_per_s for each in rounds],
            ttft_ms=[1000 * sample.ttft_s for sample in answered],
            gap_ms=[1000 * gap_s for sample in answered for gap_s in sample.gaps_s],
            n_requests=len(answered),
            n_prompt_tokens=sum(sample.n_prompt_tokens for sample in answered),
            n_cached_tokens=sum(sample.n_cached_tokens for sample in answered),
            n_output_tokens=sum(sample.n_output_tokens for sample in answered),
            n_errors=sum(len(each.errors) for each in rounds),
            client_cpu=sum(each.client_cpu_s for each in rounds) / sum(r.wall_s for r in rounds),
        )


# Servers


def idle_lines(servers: Iterable[Server], seconds: float) -> list[str]:
    """What each server started here costs while nobody asks it anything."""
    pids = {each.name: each.process.pid for each in servers if each.process is not None}
    time.sleep(SETTLE_S)
    before = {name: cpu_time_s(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    lines = []
    for name, pid in pids.items():
        start_s, end_s = before[name], cpu_time_s(pid)
        if start_s is None or end_s is None:
            lines.append(f"{name} idle: not measured, no /proc here")
        else:
            share = (end_s - start_s) / seconds
            lines.append(f"{name} idle: {share:.1%} of one core over {seconds:g} s")
    return lines


# Rounds


def measure(servers: Sequence[Server], args: argparse.Namespace) -> list[Round]:
    """Every server at every concurrency, `args.rounds` times, in alternating order."""
    rounds = []
    for concurrency in args.concurrency:
        for index in range(-1 if args.warmup else 0, args.rounds):
            for server in servers if index % 2 == 0 else reversed(servers):
                time.sleep(SETTLE_S)
                result = one_round(server, concurrency, index, args)
                if index >= 0:
                    rounds.append(result)
                note(result)
    return rounds


def one_round(server: Server, concurrency: int, index: int, args: argparse.Namespace) -> Round:
    assert server.model is not None, "warm() names the model"
    shape = Shape(args.max_tokens, args.extras, args.timeout, args.spread)
    # The same prompts for every server, and none that an earlier round has left in a cache.
    seed = f"{args.seed}/{concurrency}/{index}"
    texts = prompts(concurrency * args.requests_per_client, args.words, seed)
    bodies = [chat_body(server.model, text, i, shape) for i, text in enumerate(texts)]
    return asyncio.run(
        drive(
            server.endpoint,
            bodies,
            concurrency,
            shape.timeout_s,
            server=server.name,
            index=index,
        )
    )


def note(result: Round) -> None:
    """Progress, on stderr so that stdout holds the table alone."""
    kind = "warm-up" if result.index < 0 else f"round {result.index + 1}"
    print(
        f"{kind}, {result.concurrency} clients, {result.server}:"
        f" {result.output_tokens_per_s:.1f} tokens/s in {result.wall_s:.1f} s,"
        f" {len(result.errors)} errors",
        file=sys.stderr,
    )


# Report


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def per_server(rounds: Sequence[Round]) -> dict[tuple[int, str], list[Round]]:
    """Rounds by concurrency and server, in the order in which they were first measured."""
    groups: dict[tuple[int, str], list[Round]] = {}
    for each in rounds:
        groups.setdefault((each.concurrency, each.server), []).append(each)
    return groups


def ratios(ours: Sequence[Round], theirs: Sequence[Round]) -> list[float]:
    """Our output tokens per second over theirs, round by round; a round without any is left out."""
    pairs = zip(ours, theirs, strict=True)
    return [
        mine.output_tokens_per_s / other.output_tokens_per_s
        for mine, other in pairs
        if mine.output_tokens_per_s and other.output_tokens_per_s
    ]


def row(concurrency: int, name: str, summary: Summary) -> list[str]:
    rates, n_requests = summary.tokens_per_s, summary.n_requests or 1
    return [
        str(concurrency),
        name,
        f"{statistics.median(rates):.1f}",
        f"{min(rates):.1f}-{max(rates):.1f}",
        f"{percentile(summary.ttft_ms, 0.5):.0f}",
        f"{percentile(summary.ttft_ms, 0.99):.0f}",
        f"{percentile(summary.gap_ms, 0.5):.1f}",
        f"{percentile(summary.gap_ms, 0.99):.1f}",
        f"{summary.n_output_tokens / n_requests:.1f}",
        f"{summary.n_cached_tokens / (summary.n_prompt_tokens or 1):.0%}",
        f"{summary.client_cpu:.0%}",
        str(summary.n_errors),
    ]


HEADINGS = [
    *("clients", "server", "tokens/s", "min-max", "TTFT p50", "p99 ms", "gap p50", "p99 ms"),
    *("tokens/answer", "cached", "client CPU", "errors"),
]


def table(rounds: Sequence[Round]) -> str:
    """One row per concurrency and server."""
    rows = [row(*key, Summary.of(group)) for key, group in per_server(rounds).items()]
    return markdown([HEADINGS, *rows])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head, in Markdown so that a result can be pasted."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        + " |"
        for cells in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def ratio_lines(rounds: Sequence[Round], reference: str) -> list[str]:
    """The first server's throughput over each other one's: median, and range, of the rounds."""
    groups = per_server(rounds)
    lines = []
    for (concurrency, name), theirs in groups.items():
        values = ratios(groups[concurrency, reference], theirs) if name != reference else []
        if values:
            lines.append(
                f"{reference} / {name}, {concurrency} clients:"
                f" {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
            )
    return lines


def error_lines(rounds: Sequence[Round]) -> list[str]:
    """Each server's distinct errors, once."""
    return list(
        dict.fromkeys(
            f"error from {each.server}: {text}" for each in rounds for text in each.errors
        )
    )


def as_json(rounds: Sequence[Round], extra: dict[str, Any]) -> dict[str, Any]:
    """Every round with its own figures, the machine, and the command."""
    return {
        "machine": machine(),
        "command": shlex.join(sys.argv),
        "rounds": [round_json(each) for each in rounds],
        **extra,
    }


def round_json(result: Round) -> dict[str, Any]:
    summary = Summary.of([result])
    return {
        "server": result.server,
        "concurrency": result.concurrency,
        "round": result.index,
        "wall_s": result.wall_s,
        "output_tokens_per_s": result.output_tokens_per_s,
        "ttft_ms": {
            "p50": percentile(summary.ttft_ms, 0.5),
            "p99": percentile(summary.ttft_ms, 0.99),
        },
        "gap_ms": {"p50": percentile(summary.gap_ms, 0.5), "p99": percentile(summary.gap_ms, 0.99)},
        "n_prompt_tokens": summary.n_prompt_tokens,
        "n_cached_tokens": summary.n_cached_tokens,
        "n_output_tokens": summary.n_output_tokens,
        "client_cpu": summary.client_cpu,
        "errors": result.errors,
    }


# Command line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compares this project's server with others under the same load."
    )
    server_options(parser.add_argument_group("servers"))
    load_options(parser.add_argument_group("load"))
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="then measure idle CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE")
    args = parser.parse_args()
    check_servers(parser, args)
    return args


def load_options(group: argparse._ArgumentGroup) -> None:
    def number(option: str, default: int, text: str) -> None:
        group.add_argument(
            option, type=positive, default=default, metavar="N", help=f"{text} (default {default})"
        )

    group.add_argument(
        "--concurrency",
        type=positive,
        nargs="+",
        default=[1, 8, 32],
        metavar="N",
        help="numbers of clients (default 1 8 32)",
    )
    number("--requests-per-client", 2, "requests of one client in a round")
    number("--rounds", 3, "measured rounds at each concurrency")
    group.add_argument("--warmup", action="store_true", help="one unmeasured round before them")
    number("--max-tokens", 64, "output tokens of one answer")
    group.add_argument(
        "--spread",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="answers between (1 - SHARE) and (1 + SHARE) of --max-tokens long (default 0)",
    )
    number("--words", 80, "words in one prompt")
    number("--timeout", 600, "seconds for one request")
    group.add_argument("--seed", type=int, default=0, help="of the prompts (default 0)")
    group.add_argument(
        "--no-extras",
        dest="extras",
        action="store_false",
        help="for servers that refuse ignore_eos, top_k and min_p; answers may differ in length",
    )


def main() -> int:
    args = arguments()
    try:
        with running(args) as servers:
            rounds = measure(servers, args)
            idle = idle_lines(servers, args.idle) if args.idle else []
    except ServerFailed as error:
        print(error, file=sys.stderr)
        return 1
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    compared = ratio_lines(rounds, servers[0].name)
    print(table(rounds), *compared, *idle, *error_lines(rounds), f"({about})", sep="\n")
    if args.json:
        args.json.write_text(json.dumps(as_json(rounds, {"idle": idle}), indent=2) + "\n")
    return 1 if any(each.errors for each in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
