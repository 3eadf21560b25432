"""Token bytes to text: whole characters only, stop strings held back. Pure."""

from __future__ import annotations

import codecs


class Detokenizer:
    """Bytes in, text out; what could still become a stop string waits until it cannot.

    A stop string ends the text before it and is not part of it. Bytes that are no UTF-8 become
    U+FFFD, as OpenAI sends them. ``n_decoded`` counts the characters that came in, ``n_released``
    those that went out.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = stop
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
        out = self._release(self._decode(b"", final=True)) + self._held
        self._held = ""
        return self._count(out)

    def _decode(self, piece: bytes, final: bool = False) -> str:
        text = self._decoder.decode(piece, final)
        self.n_decoded += len(text)
        return text

    def _count(self, released: str) -> str:
        self.n_released += len(released)
        return released

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        text = self._held + text
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        n_held = max(map(lambda stop: _overlap(text, stop), self._stop))
        cut = len(text) - n_held
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
