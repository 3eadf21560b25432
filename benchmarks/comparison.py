"""What comparisons of servers have in common: options, the run, and the JSON of its rounds."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from servers import Server, ServerFailed, check_servers, machine, positive, running

Figures = TypeVar("Figures")
# Of what was asked of which server.
Measure = Callable[[Sequence[Server], argparse.Namespace], dict[Any, list[Figures]]]


def run_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--rounds", type=positive, default=rounds, metavar="N",
                        help=f"measured rounds (default {rounds})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    args.extras = True
    check_servers(parser, args)
    return args


def measured(
    args: argparse.Namespace, measure: Measure[Figures]
) -> tuple[list[str], dict[Any, list[Figures]]] | None:
    """The servers' names, ours first, and the rounds; None where a server failed, which is told."""
    try:
        with running(args) as servers:
            return [server.name for server in servers], measure(servers, args)
    except ServerFailed as error:
        print(error, file=sys.stderr)
        return None


def end(
    args: argparse.Namespace,
    what: str,
    rounds: Mapping[Any, Sequence[Figures]],
    fields: Callable[[Figures], dict[str, Any]],
) -> None:
    """Print the machine, and write the rounds if that is wanted; ``what`` was asked of servers."""
    print("(" + ", ".join(f"{key} {value}" for key, value in machine().items()) + ")")
    if args.json is None:
        return
    written = {
        "machine": machine(),
        "command": shlex.join(sys.argv),
        "rounds": [
            {what: key, "server": server, "round": index, **fields(each)}
            for (key, server), figures in rounds.items()
            for index, each in enumerate(figures)
        ],
    }
    args.json.write_text(json.dumps(written, indent=2) + "\n")
