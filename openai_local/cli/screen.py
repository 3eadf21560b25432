"""What commands print: answers as they come, facts as tables, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

# A model's text may come from strangers; a terminal obeys what these begin.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


# Lines that go into a pipe are not wrapped.
WIDE = 4096


def out() -> Console:
    """Standard output, with colours and bounded lines only where a terminal shows them."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def harmless(text: str) -> str:
    """``text`` without the characters that move a terminal's cursor or change its settings."""
    return text.translate(_CONTROLS)


@contextmanager
def answering(console: Console) -> Iterator[Callable[..., None]]:
    """Shows a text as it comes, piece by piece, and ends its line, however it ends."""
    shown = failed = False

    def show(text: str, style: str | None = None) -> None:
        nonlocal shown
        shown = shown or bool(text)
        console.out(harmless(text) if console.is_terminal else text, end="", style=style)
        console.file.flush()

    try:
        yield show
    except Exception:
        failed = True
        raise
    finally:
        if shown or not failed:  # nor above the one line of an error
            console.out("")


def print_json(data: Any) -> None:
    """For programs: one document."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def size(n_bytes: float) -> str:
    """Such as "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.0f} {unit}" if n_bytes >= 100 or unit == "B" else f"{n_bytes:.1f} {unit}"
