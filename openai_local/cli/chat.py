"""``chat``: a conversation in the terminal, or one answer in a pipe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from openai_local.cli.completion import complete_models
from openai_local.cli.conversation import Conversation, Piece
from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.options import MODEL_FIELDS, takes_settings
from openai_local.cli.prompt import enable_editing, read_message
from openai_local.cli.screen import err, harmless, out
from openai_local.cli.service import ApiKey, Url, named_model, open_service

cli = typer.Typer(add_completion=False, rich_markup_mode=None)

HELP = """\
/system TEXT  set the system message; without TEXT, none
/clear        begin anew
/retry        another answer to the last message
/save FILE    write the messages as JSON
/exit         end, as Ctrl-D does
Ctrl-C stops an answer. A backslash at the end of a line, or triple quotes, make several lines."""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


@cli.command()
@takes_settings(MODEL_FIELDS)
def chat(
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
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The most of an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same one, the same answers.")] = None,
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
    if verbose:
        asked["stream_options"] = {"include_usage": True}
    parameters = {key: value for key, value in asked.items() if value is not None}
    interactive = sys.stdin.isatty()
    message = "" if interactive else sys.stdin.read().strip()
    if not interactive and not message:
        raise CommandFailed("there is no message on standard input", USAGE)
    with open_service(url, api_key, named_model(name, settings)) as service:
        conversation = Conversation(service, parameters)
        conversation.set_system(system or "")
        if interactive:
            _Dialogue(conversation, verbose).run()
        else:
            _show(conversation.ask(message))
            if verbose:
                err().out(conversation.speed.line(), style="dim")


def _response_format(file: Path) -> dict[str, Any]:
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandFailed(f"{file} is no JSON: {error}", USAGE) from None
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": named}


def _show(pieces: Iterable[Piece]) -> None:
    """Print them as they come; thoughts dimmed, and not at all where they would be data."""
    console = out()
    thinking = False
    for piece in pieces:
        if piece.is_thought and not console.is_terminal:
            continue
        if thinking and not piece.is_thought:
            console.out("\n")
        thinking = piece.is_thought
        text = harmless(piece.text) if console.is_terminal else piece.text
        console.out(text, end="", style="dim" if thinking else None)
        console.file.flush()
    console.out("")


class _Dialogue:
    """Messages and commands in turn, until the end of input."""

    def __init__(self, conversation: Conversation, verbose: bool) -> None:
        self._conversation = conversation
        self._verbose = verbose
        self._notes = err()

    def run(self) -> None:
        enable_editing()
        self._note(f"{self._conversation.service.model}: /help, Ctrl-D ends")
        while True:
            try:
                message = read_message()
            except KeyboardInterrupt:
                self._note("\nCtrl-D ends")
                continue
            except EOFError:
                self._notes.out("")
                return
            command = _COMMAND.fullmatch(message)
            if command and command[1] == "exit":
                return
            try:
                if command:
                    self._obey(command[1], (command[2] or "").strip())
                elif message:
                    self._answer(self._conversation.ask(message))
            except (CommandFailed, OSError) as error:
                self._notes.out(f"error: {error}", style="red")

    def _obey(self, command: str, rest: str) -> None:
        conversation = self._conversation
        if command == "help":
            self._note(HELP)
        elif command == "clear":
            conversation.clear()
        elif command == "system":
            conversation.set_system(rest)
        elif command == "save" and rest:
            text = json.dumps(conversation.messages, indent=2, ensure_ascii=False)
            Path(rest).expanduser().write_text(text + "\n", encoding="utf-8")
        elif command == "save":
            self._note("/save FILE")
        elif command == "retry" and not conversation.forget_answer():
            self._note("nothing was asked yet")
        elif command == "retry":
            self._answer(conversation.answer())
        else:
            self._note(f"no command /{command}; there are:\n{HELP}")

    def _answer(self, pieces: Iterable[Piece]) -> None:
        try:
            _show(pieces)
        except KeyboardInterrupt:
            self._note("\n(stopped)")
            return
        if self._conversation.speed.finish_reason == "length":
            self._note("(cut off: no more tokens)")
        if self._verbose:
            self._note(self._conversation.speed.line())

    def _note(self, text: str) -> None:
        self._notes.out(text, style="dim")
