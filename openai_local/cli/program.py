"""The group of commands. Each is imported when it is called; any error is one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core
import typer.main

import openai_local
from openai_local.cli.failures import INTERRUPTED, USAGE, CommandFailed, explain
from openai_local.cli.signals import terminable
from openai_local.cli.streams import mend_streams

COMMANDS = {
    "serve": "Serve a model over HTTP, with OpenAI's API.",
    "chat": "Chat with a local model, or with a server.",
    "complete": "Continue a text, without a chat template.",
    "embed": "Make embeddings of texts.",
    "models": "List, show, fetch and remove models.",
    "config": "Show the settings, and where each comes from.",
    "doctor": "Say what is broken or slow here, and why.",
}
DEBUG = "--debug"
COMPLETION = ("--install-completion", "--show-completion")


class _Program(typer.core.TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            module = import_module(f"openai_local.cli.{args[0]}")
            self.commands[args[0]] = typer.main.get_command(module.cli)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        words, debug = _without_debug(list(sys.argv[1:] if args is None else args))
        options |= {"standalone_mode": False, "obj": debug}
        mend_streams()
        with terminable():
            try:
                _check_completion(words)
                status = super().main(words, *rest, **options)
            except typer.Abort:
                status = INTERRUPTED
            except Exception as error:
                if debug:
                    traceback.print_exception(error)
                line, status = explain(error)
                typer.echo(f"error: {line}", err=True)
        if status == INTERRUPTED and sys.stderr.isatty():
            typer.echo(err=True)  # the shell's prompt goes below ^C
        sys.exit(status or 0)


def _without_debug(args: list[str]) -> tuple[list[str], bool]:
    """``--debug`` may be anywhere among the options."""
    end = args.index("--") if "--" in args else len(args)
    options = [word for word in args[:end] if word != DEBUG]
    return options + args[end:], len(options) < end


def _check_completion(words: list[str]) -> None:
    """What stands behind these is ignored, such as the name of another shell than the caller."""
    if len(words) > 1 and words[0] in COMPLETION:
        text = f"{words[0]} takes no {words[1]!r}: it is for the shell that calls it"
        raise CommandFailed(text, USAGE)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"openai_local {openai_local.__version__}")
        raise typer.Exit


program = typer.Typer(cls=_Program, pretty_exceptions_enable=False, rich_markup_mode=None)


@program.callback(invoke_without_command=True)
def _group(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    """A local LLM behind the OpenAI API."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _stub() -> None:
    raise AssertionError("a command is imported before it is called")


for _name, _help in COMMANDS.items():
    program.command(_name, help=_help)(_stub)
