"""``complete``: a text goes on, as it comes, without a chat template."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from openai_local.cli.client import choices, text
from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.options import MODEL_FIELDS, takes_settings
from openai_local.cli.screen import answering, out
from openai_local.cli.service import ApiKey, Url, open_service
from openai_local.cli.streams import read_all, whole

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@cli.command()
@takes_settings(MODEL_FIELDS)
def complete(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text; else what is on standard input."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    max_tokens: Annotated[
        int, typer.Option(help="The most that are added.", metavar="NUMBER")
    ] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest.", metavar="NUMBER")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same one, the same text.", metavar="NUMBER")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text before which to end; may be repeated.", metavar="TEXT"),
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt too.")] = False,
    **settings: Any,
) -> None:
    """Continue a text, without a chat template."""
    given = whole(prompt) if prompt is not None else _standard_input()
    asked = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": [whole(word) for word in stop or ()] or None,
    }
    parameters = {key: value for key, value in asked.items() if value is not None}
    console = out()
    with open_service(url, api_key, settings) as service:
        body = {"model": service.model, "prompt": given, **parameters}
        if echo:
            console.out(given, end="")
        with answering(console) as show:
            for chunk in service.client.stream("completions", body):
                for choice in choices(chunk):
                    show(text(choice.get("text")))


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise CommandFailed("there is no PROMPT, and nothing on standard input", USAGE)
    return read_all()
