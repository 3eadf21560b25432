"""``embed``: a vector for each text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

import typer

from openai_local.cli.client import STRANGE
from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.options import MODEL_FIELDS, takes_settings
from openai_local.cli.service import ApiKey, Url, open_service
from openai_local.cli.streams import MARK, whole

cli = typer.Typer(add_completion=False, rich_markup_mode=None)

N_BATCH = 64
FIELDS = (*MODEL_FIELDS, "embedding_model")


@cli.command()
@takes_settings(FIELDS)
def embed(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="The texts; else the lines of standard input."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    dimensions: Annotated[
        int | None, typer.Option(help="The first so many of each.", metavar="NUMBER")
    ] = None,
    **settings: Any,
) -> None:
    """Make embeddings of texts: a JSON list of numbers for each, a line each, in order.

    Of the setting embedding_model where that names a file, else of the model.
    """
    if not texts and sys.stdin.isatty():
        raise CommandFailed("there is no TEXT, and nothing on standard input", USAGE)
    lines = iter(map(whole, texts)) if texts else _lines()
    with open_service(url, api_key, settings, embeds=True) as service:
        while batch := list(islice(lines, N_BATCH)):
            body: dict[str, Any] = {"model": service.model, "input": batch}
            if dimensions is not None:
                body["dimensions"] = dimensions
            for vector in _vectors(service.client.post("embeddings", body), batch):
                sys.stdout.write(json.dumps(vector) + "\n")
            sys.stdout.flush()


def _vectors(answer: dict[str, Any], batch: Sequence[str]) -> list[list[float]]:
    try:
        data = sorted(answer["data"], key=lambda entry: entry["index"])
        vectors = [entry["embedding"] for entry in data]
    except (KeyError, TypeError):
        raise CommandFailed(STRANGE) from None
    if len(vectors) != len(batch):
        raise CommandFailed(f"the server gave {len(vectors)} embeddings of {len(batch)} texts")
    return vectors


def _lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            raise CommandFailed(f"line {number} on standard input is empty: no embedding", USAGE)
        text = whole(line.rstrip("\r\n"))
        yield text.removeprefix(MARK) if number == 1 else text
