"""A chat in the terminal: messages, and commands that begin with a slash."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from openai_local.cli.conversation import Conversation, Piece
from openai_local.cli.failures import CommandFailed, explain
from openai_local.cli.prompt import enable_editing, read_message
from openai_local.cli.screen import answering, err, harmless, out

HELP = """\
/system TEXT     set the system message; without TEXT, none
/set NAME VALUE  set a parameter such as temperature or max_tokens; without VALUE, its default;
                 without NAME, show what is set
/retry           another answer to the last message
/clear           begin anew
/save FILE       write the messages as JSON
/load FILE       go on from messages that were saved
/exit            end, as Ctrl-D does
Ctrl-C stops an answer. A backslash at the end of a line, or triple quotes, make several lines, and
so do lines that are pasted."""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
# What a dialogue sets itself, and what it could not show.
_FIXED = ("model", "messages", "n", "stream", "stream_options", "tools", "functions")


def show_pieces(pieces: Generator[Piece]) -> None:
    """Print them as they come; thoughts dimmed, and not at all where they would be data."""
    console = out()
    thinking = False
    with answering(console) as show, closing(pieces):
        for piece in pieces:
            if piece.is_thought and not console.is_terminal:
                continue
            if thinking and not piece.is_thought:
                show("\n\n")
            thinking = piece.is_thought
            show(piece.text, style="dim" if thinking else None)


class Dialogue:
    """Messages and commands in turn, until the end of input. No error of a turn ends it; with
    ``debug`` one that was not expected shows its traceback."""

    def __init__(self, conversation: Conversation, debug: bool = False) -> None:
        self._conversation = conversation
        self._debug = debug
        self._notes = err()
        self._commands = {
            "clear": self._clear,
            "help": self._help,
            "load": self._load,
            "retry": self._retry,
            "save": self._save,
            "set": self._set,
            "system": self._system,
        }

    def run(self) -> None:
        enable_editing()
        self._note(f"{self._conversation.service.model}: /help, Ctrl-D ends")
        while True:
            try:
                message = read_message()
                if message == "/exit":
                    return
                self._turn(message)
            except KeyboardInterrupt:
                self._note("\nCtrl-D ends")
            except EOFError:
                self._notes.out("")
                return

    def _turn(self, message: str) -> None:
        try:
            command = _COMMAND.fullmatch(message)
            if command:
                self._obey(command[1], (command[2] or "").strip())
            elif message:
                self._answer(self._conversation.ask(message))
        except Exception as error:  # what was said so far must not be lost
            if self._debug:
                traceback.print_exception(error)
            self._notes.out(f"error: {explain(error)[0]}", style="red")

    def _obey(self, name: str, rest: str) -> None:
        command = self._commands.get(name)
        if command is None:
            self._note(f"no command /{name}; there are:\n{HELP}")
        else:
            command(rest)

    def _help(self, rest: str) -> None:
        self._note(HELP)

    def _clear(self, rest: str) -> None:
        self._conversation.clear()

    def _system(self, rest: str) -> None:
        self._conversation.set_system(rest)

    def _set(self, rest: str) -> None:
        parameters = self._conversation.parameters
        name, _, value = rest.partition(" ")
        if name in _FIXED:
            raise CommandFailed(f"{name} cannot be set here")
        if value:
            parameters[name] = _value(value.strip())
        elif name and parameters.pop(name, None) is None:
            self._note(f"{name} is not set")
        if not name:
            lines = [f"{name}: {json.dumps(value)}" for name, value in parameters.items()]
            self._note("\n".join(lines) or "nothing is set: the model's defaults")

    def _save(self, rest: str) -> None:
        text = json.dumps(self._conversation.messages, indent=2, ensure_ascii=False)
        _file(rest, "save").write_text(text + "\n", encoding="utf-8")

    def _load(self, rest: str) -> None:
        try:
            self._conversation.load(json.loads(_file(rest, "load").read_text(encoding="utf-8")))
        except ValueError as error:
            raise CommandFailed(f"{rest}: {error}") from None
        self._note(f"{len(self._conversation.messages)} messages")

    def _retry(self, rest: str) -> None:
        pieces = self._conversation.retry()
        if pieces is None:
            self._note("nothing was asked yet")
        else:
            self._answer(pieces)

    def _answer(self, pieces: Generator[Piece]) -> None:
        conversation = self._conversation
        n_left_out = conversation.n_left_out
        try:
            show_pieces(pieces)
        except KeyboardInterrupt:
            self._note("(stopped)")
            return
        if conversation.n_left_out > n_left_out:
            n = conversation.n_left_out
            self._note(f"(too long for the model: it was not shown the first {n} messages)")
        if conversation.speed.finish_reason == "length":
            self._note("(cut off: no more tokens)")
        if conversation.counts:
            self._note(conversation.speed.line())

    def _note(self, text: str) -> None:
        self._notes.out(harmless(text), style="dim")


def _file(name: str, command: str) -> Path:
    if not name:
        raise CommandFailed(f"/{command} needs a FILE")
    return Path(name).expanduser()


def _value(text: str) -> Any:
    """As JSON, or a text as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
