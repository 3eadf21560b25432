"""Messages from the keyboard, of one line or several."""

from __future__ import annotations

import os
import sys

from openai_local.cli.streams import whole

FENCE = '"""'


def enable_editing() -> None:
    """Arrow keys and a history of this process, where the system has them."""
    try:
        import readline
    except ImportError:
        return
    if os.environ.get("TERM") != "dumb":
        # Lines that are pasted are one message, which Python switches off.
        readline.parse_and_bind("set enable-bracketed-paste on")


def read_message() -> str:
    """A line; several if they are pasted, after a backslash at an end, or between triple quotes.

    Raises EOFError at the end of input, KeyboardInterrupt where the line is given up.
    """
    line = _read("> ")
    if line.lstrip().startswith(FENCE):
        return _fenced(line.lstrip()[len(FENCE) :])
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_read(". "))
    return "\n".join(lines).strip()


def _fenced(first: str) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(_read(". "))
    lines[-1] = lines[-1].rstrip()[: -len(FENCE)]
    return "\n".join(lines).strip("\n")


def _read(prompt: str) -> str:
    if sys.stdout.isatty():
        return whole(input(prompt))
    sys.stderr.write(prompt)  # the answers go elsewhere
    sys.stderr.flush()
    return whole(input())
