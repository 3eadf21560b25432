"""``embed``: a vector for each text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

import typer

from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.options import MODEL_FIELDS, takes_settings
from openai_local.cli.service import ApiKey, Url, open_service

cli = typer.Typer(add_completion=False, rich_markup_mode=None)

N_BATCH = 64
FIELDS = (*MODEL_FIELDS, "embedding_model")


@cli.command()
@takes_settings(FIELDS)
def embed(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="The texts; else the lines of standard input."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    dimensions: Annotated[int | None, typer.Option(help="The first so many of each.")] = None,
    **settings: Any,
) -> None:
    """Make embeddings of texts: a JSON list of numbers for each, a line each, in order.

    Of the setting embedding_model where that names a file, else of the model.
    """
    lines = iter(texts) if texts else _lines()
    with open_service(url, api_key, settings, embeds=True) as service:
        while batch := list(islice(lines, N_BATCH)):
            body: dict[str, Any] = {"model": service.model, "input": batch}
            if dimensions is not None:
                body["dimensions"] = dimensions
            for vector in _vectors(service.client.post("embeddings", body), batch):
                sys.stdout.write(json.dumps(vector) + "\n")
            sys.stdout.flush()


def _vectors(answer: dict[str, Any], batch: Sequence[str]) -> list[list[float]]:
    data = sorted(answer.get("data", ()), key=lambda entry: entry["index"])
    if len(data) != len(batch):
        raise CommandFailed(f"the server gave {len(data)} embeddings of {len(batch)} texts")
    return [entry["embedding"] for entry in data]


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        raise CommandFailed("there is no TEXT, and nothing on standard input", USAGE)
    for line in sys.stdin:
        if not line.strip():
            raise CommandFailed("an empty line on standard input has no embedding", USAGE)
        yield line.rstrip("\n")
