"""``chat``: a conversation in the terminal, or one answer in a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from openai_local.cli.completion import complete_models
from openai_local.cli.conversation import Conversation
from openai_local.cli.dialogue import Dialogue, show_pieces
from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.options import MODEL_FIELDS, takes_settings
from openai_local.cli.screen import err
from openai_local.cli.service import ApiKey, Url, named_model, open_service
from openai_local.cli.streams import read_all, whole

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@cli.command()
@takes_settings(MODEL_FIELDS)
def chat(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file or a model of the settings; with --url, the name of a model there.",
            autocompletion=complete_models,
        ),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, typer.Option(help="The system message.", metavar="TEXT")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest.", metavar="NUMBER")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="The most of an answer.", metavar="NUMBER")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same one, the same answers.", metavar="NUMBER")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a schema that binds answers.", metavar="FILE")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell the speed.")] = False,
    **settings: Any,
) -> None:
    """Chat with a local model, or with a server at --url.

    In a pipe, standard input is the message and standard output the answer.
    """
    asked: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    if json_schema is not None:
        asked["response_format"] = _response_format(json_schema)
    parameters = {key: value for key, value in asked.items() if value is not None}
    interactive = sys.stdin.isatty()
    message = "" if interactive else read_all().strip()
    if not interactive and not message:
        raise CommandFailed("there is no message on standard input", USAGE)
    with open_service(url, api_key, named_model(name, settings)) as service:
        conversation = Conversation(service, parameters, counts=verbose)
        conversation.set_system(whole(system or ""))
        if interactive:
            Dialogue(conversation, debug=bool(context.obj)).run()
        else:
            show_pieces(conversation.ask(message))
            if verbose:
                err().out(conversation.speed.line(), style="dim")


def _response_format(file: Path) -> dict[str, Any]:
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandFailed(f"{file} is no JSON: {error}", USAGE) from None
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": named}
