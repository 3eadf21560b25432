"""Compares servers by the schema-bound objects per second that they make, every one validated.

    python benchmarks/structured.py --model model.gguf --peer-command 'llama-server=...'

Prints a table of medians, and our ratios to the first peer: above 1 we are faster. An object counts
when `jsonschema`, which must be installed, finds it valid.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from comparison import end, measured, parsed, run_options
from load import (
    WORDS,
    StreamFailure,
    Transcript,
    chat,
    read_transcript,
)
from ratios import Ratio
from schemas import SCHEMAS, check
from servers import Server, positive, server_options
from throughput import SETTLE_S, markdown, percentile


@dataclass(frozen=True, slots=True)
class Figures:
    """One round of one server. `errors` tell of requests that failed and of invalid objects."""

    wall_s: float
    n_valid: int
    n_output_tokens: int
    latencies_s: list[float]
    errors: list[str]

    @property
    def objects_per_s(self) -> float:
        return self.n_valid / self.wall_s


Rounds = dict[tuple[int, str], list[Figures]]


def bodies(model: str, count: int, seed: str, max_tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests with the names of their schemas, which take turns."""
    rng = random.Random(seed)
    names = list(SCHEMAS)
    return [
        (names[i % len(names)], _body(model, names[i % len(names)], rng, max_tokens))
        for i in range(count)
    ]


def _body(model: str, name: str, rng: random.Random, max_tokens: int) -> dict[str, Any]:
    words = " ".join(rng.choices(WORDS, k=40))
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"{words}\nWrite the {name} in this as JSON."}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": name, "strict": True, "schema": SCHEMAS[name]},
        },
        "max_tokens": max_tokens,
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": 0.05,
        "seed": rng.randrange(2**31),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def measure(servers: Sequence[Server], args: argparse.Namespace) -> Rounds:
    """Every server with every number of clients, `args.rounds` times, in alternating order."""
    rounds: Rounds = {}
    for clients in args.clients:
        for index in range(-1 if args.warmup else 0, args.rounds):
            for server in servers if index % 2 == 0 else reversed(servers):
                time.sleep(SETTLE_S)
                figures = asyncio.run(one_round(server, clients, index, args))
                if index >= 0:
                    rounds.setdefault((clients, server.name), []).append(figures)
                print(
                    f"{clients} clients, round {index + 1}, {server.name}:"
                    f" {figures.objects_per_s:.2f} objects/s in {figures.wall_s:.1f} s,"
                    f" {len(figures.errors)} errors",
                    file=sys.stderr,
                )
    return rounds


async def one_round(server: Server, clients: int, index: int, args: argparse.Namespace) -> Figures:
    assert server.model is not None, "a warm server has named its models"
    requests = bodies(
        server.model, clients * args.requests_per_client, f"{args.seed}/{clients}/{index}",
        args.max_tokens,
    )  # fmt: skip
    answers: list[tuple[str, Transcript | Exception]] = []

    async def client(own: Sequence[tuple[str, dict[str, Any]]]) -> None:
        for name, body in own:
            try:
                answers.append(
                    (name, await asyncio.wait_for(chat(server.endpoint, body), args.timeout))
                )
            # Whatever a server under load does wrong is a result, not the end of the run.
            except Exception as error:
                answers.append((name, error))

    start_s = time.perf_counter()
    await asyncio.gather(*(client(requests[i::clients]) for i in range(clients)))
    return read(answers, time.perf_counter() - start_s)


def read(answers: Sequence[tuple[str, Transcript | Exception]], wall_s: float) -> Figures:
    n_valid = n_tokens = 0
    latencies, errors = [], []
    for name, answer in answers:
        try:
            if isinstance(answer, Exception):
                raise answer
            n_tokens += read_transcript(answer).n_output_tokens
            problem = check(name, text_of(answer))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            assert isinstance(answer, Transcript), "an exception was raised"
            n_valid += 1
            latencies.append(answer.data[-1][0] - answer.start_s)
        else:
            errors.append(f"{name}: {problem}")
    return Figures(wall_s, n_valid, n_tokens, latencies, errors)


def text_of(transcript: Transcript) -> str:
    """The whole answer. Raises StreamFailure where it does not end by itself."""
    pieces: list[str] = []
    reason = None
    for _, datum in transcript.data:
        if datum.strip() == b"[DONE]":
            continue
        for choice in json.loads(datum)["choices"]:
            pieces.append(choice["delta"].get("content") or "")
            reason = choice.get("finish_reason") or reason
    if reason != "stop":
        raise StreamFailure(f"finish_reason {reason!r} after {''.join(pieces)[-80:]!r}")
    return "".join(pieces)


HEADINGS = (
    "clients", "server", "objects/s", "min-max", "valid", "tokens/object", "tokens/s",
    "seconds p50", "p99", "errors",
)  # fmt: skip


def row(clients: int, server: str, figures: Sequence[Figures]) -> list[str]:
    rates = [each.objects_per_s for each in figures]
    n_valid = sum(each.n_valid for each in figures)
    n_errors = sum(len(each.errors) for each in figures)
    n_tokens = sum(each.n_output_tokens for each in figures)
    latencies = [latency for each in figures for latency in each.latencies_s]
    return [
        str(clients),
        server,
        f"{median(rates):.2f}",
        f"{min(rates):.2f}-{max(rates):.2f}",
        f"{n_valid / (n_valid + n_errors):.0%}",
        f"{n_tokens / (n_valid or 1):.1f}",
        f"{median(each.n_output_tokens / each.wall_s for each in figures):.1f}",
        f"{percentile(latencies, 0.5):.2f}",
        f"{percentile(latencies, 0.99):.2f}",
        str(n_errors),
    ]


def ratios(rounds: Rounds, ours: str, theirs: str) -> list[Ratio]:
    """Of valid objects per second, round by round."""
    return [
        Ratio(
            f"{clients} clients",
            "objects/s",
            [
                mine.objects_per_s / other.objects_per_s
                for mine, other in zip(figures, rounds[clients, theirs], strict=True)
                if other.n_valid
            ],
        )
        for (clients, name), figures in rounds.items()
        if name == ours
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compares servers by the schema-bound objects per second that they make."
    )
    server_options(parser.add_argument_group("servers"))
    group = parser.add_argument_group("load")
    group.add_argument("--clients", type=positive, nargs="+", default=[1, 8], metavar="N",
                       help="numbers of clients (default 1 8)")  # fmt: skip
    for option, default, text in (
        ("--requests-per-client", 10, "requests of one client in a round"),
        ("--max-tokens", 400, "output tokens after which an object counts as failed"),
        ("--timeout", 300, "seconds for one request"),
    ):
        group.add_argument(option, type=positive, default=default, metavar="N",
                           help=f"{text} (default {default})")  # fmt: skip
    group.add_argument("--warmup", action="store_true", help="one unmeasured round before them")
    run_options(parser, rounds=5)
    return parsed(parser)


def main() -> int:
    args = arguments()
    found = measured(args, measure)
    if found is None:
        return 1
    (ours, *peers), rounds = found
    print(markdown([list(HEADINGS), *(row(*key, each) for key, each in rounds.items())]))
    for peer in peers:
        print(*(ratio.line(ours, peer) for ratio in ratios(rounds, ours, peer)), sep="\n")
    errors = [
        f"error from {server}: {text}"
        for (_, server), figures in rounds.items()
        for each in figures
        for text in each.errors
    ]
    print(*dict.fromkeys(errors), sep="\n")
    end(args, "clients", rounds, asdict)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
