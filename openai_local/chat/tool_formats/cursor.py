"""Reads text that is still arriving. Readers are generators: they yield where they need more.

What a reader decides never depends on where the text was cut: it decides only what the text so
far leaves no doubt of, or what the end of the text settles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from enum import Enum
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
Emit = Callable[[str], None]

_SPACE = " \t\r\n"
_MAX_WORD = 256
MAX_DEPTH = 64  # of values within values


class Slot(Enum):
    """A place in a marker where something of the call's own stands."""

    ID = "id"
    INDEX = "index"


Marker = tuple[str | Slot, ...]

_SLOT_CHARS = {
    Slot.ID: re.compile(r"[A-Za-z0-9_.:-]"),
    Slot.INDEX: re.compile(r"[0-9]"),
}


class Cursor:
    """A place in the text so far.

    ``pos`` is a place in ``text``, from which :meth:`feed` takes away what was settled; places
    that are kept over a wait come from :meth:`mark`. A text that is ``closed`` may have been
    ``cut`` off: then what may be the beginning of a mark is one. ``starved`` says that a reader
    wanted more at the end of the text.
    """

    __slots__ = ("_base", "_settled", "closed", "cut", "pos", "starved", "text")

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.closed = False
        self.cut = False
        self.starved = False
        self._base = 0
        self._settled = 0

    def feed(self, text: str) -> None:
        gone = self._settled
        self.text = self.text[gone:] + text
        self.pos -= gone
        self._base += gone
        self._settled = 0

    def settle(self) -> None:
        """What is before the place will not be read again."""
        self._settled = self.pos

    def mark(self) -> int:
        """The place, to come back to."""
        return self._base + self.pos

    def back(self, mark: int) -> None:
        self.pos = mark - self._base

    def since(self, mark: int) -> str:
        """What was read since ``mark``."""
        return self.text[mark - self._base : self.pos]

    def more(self) -> Reading[bool]:
        """Wait until there is a character at the place; False at the end of the text."""
        while self.pos >= len(self.text):
            if self.closed:
                self.starved = True
                return False
            yield
        return True

    @property
    def rest(self) -> str:
        return self.text[self.pos :]

    def drop_rest(self) -> None:
        """Nothing of what is left is read."""
        self.pos = len(self.text)

    def peek(self) -> Reading[str]:
        """The next character, or nothing at the end."""
        return self.text[self.pos] if (yield from self.more()) else ""

    def skip_space(self) -> Reading[None]:
        while (yield from self.more()) and self.text[self.pos] in _SPACE:
            self.pos += 1

    def accept(self, marker: str | Marker) -> Reading[dict[Slot, str] | None]:
        """Read ``marker``, with any whitespace where it has some or none; what its slots hold.

        Stays in place and gives None where the text is another.
        """
        start = self.mark()
        slots: dict[Slot, str] = {}
        for piece in (marker,) if isinstance(marker, str) else marker:
            if isinstance(piece, Slot):
                slots[piece] = yield from self._slot(piece)
                found = bool(slots[piece])
            else:
                found = yield from self._literal(piece)
            if not found:
                self.back(start)
                return None
        return slots

    def _slot(self, slot: Slot) -> Reading[str]:
        return (yield from self.word(_SLOT_CHARS[slot]))

    def word(self, chars: re.Pattern[str]) -> Reading[str]:
        """Characters that match, as many as there are; none where they are too many."""
        start = self.mark()
        while (yield from self.more()) and chars.match(self.text, self.pos):
            self.pos += 1
            if self.mark() - start > _MAX_WORD:
                return ""
        return self.since(start)

    def _literal(self, literal: str) -> Reading[bool]:
        body = literal.rstrip(_SPACE)
        for char in body:
            if char in _SPACE:
                continue
            yield from self.skip_space()
            if not (yield from self.more()) or self.text[self.pos] != char:
                return False
            self.pos += 1
        # Space at the end may be the beginning of what follows: no more than the marker has.
        for char in literal[len(body) :]:
            if not (yield from self.more()) or self.text[self.pos] != char:
                break
            self.pos += 1
        return True

    def until(
        self, markers: Sequence[str], emit: Emit, limit: int | None = None
    ) -> Reading[str | None]:
        """Pass on the text before the first of ``markers``, which is read and given back.

        None at the end of the text, or after ``limit`` characters without one.
        """
        pattern, longest = _finder(tuple(markers))
        size = 0
        while True:
            match = pattern.search(self.text, self.pos)
            whole = self.closed and not self.cut
            undecided = 0 if whole else _held(self.text, self.pos, markers)
            earlier = match is not None and len(self.text) - undecided < match.start()
            longer = match is not None and match.start() + longest > len(self.text)
            if match is not None and (self.closed or len(markers) == 1 or not (earlier or longer)):
                if match.start() > self.pos:
                    emit(self.text[self.pos : match.start()])
                self.pos = match.end()
                return match.group()
            if match is not None:
                undecided = max(undecided, len(self.text) - match.start())
            end = len(self.text) - undecided
            size += end - self.pos
            if end > self.pos:
                emit(self.text[self.pos : end])
                self.pos = end
            if self.closed and match is None:
                self.starved = undecided > 0
                self.drop_rest()
            if self.closed and match is None or limit is not None and size > limit:
                return None
            yield


@lru_cache(maxsize=256)
def _finder(markers: tuple[str, ...]) -> tuple[re.Pattern[str], int]:
    texts = sorted(markers, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))), len(texts[0])


def _held(text: str, start: int, markers: Sequence[str]) -> int:
    return max((overlap(text, marker, start) for marker in markers), default=0)


def overlap(text: str, marker: str, start: int = 0) -> int:
    """Length of the longest end of ``text`` behind ``start`` that begins ``marker``."""
    for n in range(min(len(text) - start, len(marker) - 1), 0, -1):
        if text.endswith(marker[:n]):
            return n
    return 0
