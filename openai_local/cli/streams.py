"""Standard input, output and errors: a closed one ends no command, and neither does a byte that is
no text."""

from __future__ import annotations

import io
import os
import sys

MARK = "\ufeff"  # with which some editors begin a file


def mend_streams() -> None:
    """In place of a closed one the null device; what cannot be written is a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            # Else the next file that is opened, such as a model, gets what is printed.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if name == "stdin" else "replace")


def whole(text: str) -> str:
    """``text`` as it was typed, piped or given as an argument; what is no UTF-8 in it is U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_all() -> str:
    """What is on standard input."""
    return whole(sys.stdin.read()).removeprefix(MARK)
