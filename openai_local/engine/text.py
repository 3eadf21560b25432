"""Token bytes to text: whole characters only, stop strings held back. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from openai_local.engine.messages import UnstoppedText


class Detokenizer:
    """Bytes in, text out; what could still become a stop string waits until it cannot.

    A stop string ends the text before it and is not part of it; what is ``unstopped`` has none.
    Bytes that are no UTF-8 become U+FFFD, as OpenAI sends them. ``n_decoded`` counts the characters
    that came in, ``n_released`` those that went out.
    """

    def __init__(self, stop: tuple[str, ...] = (), unstopped: UnstoppedText | None = None) -> None:
        self._stop = stop
        self._marks = unstopped.marks if unstopped else ()
        # Marks while there was nothing but space.
        self._first = unstopped.first if unstopped else ()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        self.n_decoded = 0
        self.n_released = 0

    @property
    def is_inside_character(self) -> bool:
        """Whether some of a character's bytes are there, and not all."""
        return bool(self._decoder.getstate()[0])

    def feed(self, piece: bytes) -> str:
        """The text that is now certain. After a stop string was found, always empty."""
        if self.stopped:
            return ""
        return self._count(self._release(self._decode(piece)))

    def finish(self) -> str:
        """What was held back, at the end of the generation."""
        if self.stopped:
            return ""
        out = self._release(self._decode(b"", final=True), final=True)
        self._held = ""
        return self._count(out)

    def _decode(self, piece: bytes, final: bool = False) -> str:
        text = self._decoder.decode(piece, final)
        self.n_decoded += len(text)
        return text

    def _count(self, released: str) -> str:
        self.n_released += len(released)
        return released

    def _release(self, text: str, final: bool = False) -> str:
        text, self._held = self._held + text, ""
        if not self._stop:
            return text
        at = _find(text, self._stop)
        marked = min(_find(text, self._marks), self._find_first(text))
        if marked < len(text) and marked <= at:
            self._stop = ()
            return text
        # What may still become a mark has no stop string in it, either.
        doubtful = len(text) if final else len(text) - _overlap(text, (*self._marks, *self._first))
        if at < len(text) and at < doubtful:
            self.stopped = True
            return text[:at]
        cut = doubtful if final else min(doubtful, len(text) - _overlap(text, self._stop))
        if text[:cut].strip():
            self._first = ()
        self._held = text[cut:]
        return text[:cut]

    def _find_first(self, text: str) -> int:
        at = _find(text, self._first)
        return at if not text[:at].strip() else len(text)


def _find(text: str, parts: Iterable[str]) -> int:
    """Where the first of ``parts`` is; the end of ``text`` where none is."""
    return min((at for part in parts if (at := text.find(part)) >= 0), default=len(text))


def _overlap(text: str, parts: Iterable[str]) -> int:
    """Length of the longest end of ``text`` that begins one of ``parts``."""
    return max((_overlap_of(text, part) for part in parts), default=0)


def _overlap_of(text: str, part: str) -> int:
    for n in range(min(len(text), len(part) - 1), 0, -1):
        if text.endswith(part[:n]):
            return n
    return 0
