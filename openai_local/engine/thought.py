"""Closes a thought that has had its tokens. Engine thread only."""

from __future__ import annotations

from openai_local.engine.backend import Vocabulary
from openai_local.engine.messages import ThoughtLimit


class ThoughtCloser:
    """Told of every token that a generation takes, it says which must come next, if one must."""

    def __init__(self, limit: ThoughtLimit, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._opening, self._end = limit.opening.encode(), limit.end.encode()
        self._end_tokens = vocabulary.tokenize(limit.end, add_special=False, parse_special=True)
        self._n_left = limit.n_tokens
        self._n_forced = 0
        self._is_open = not limit.opening
        self._is_over = False
        self._text = b""  # up to the opening, and then the last of the thought

    def due(self) -> int | None:
        """The next token of what closes the thought, once it has had its tokens."""
        if self._is_over or not self._is_open or self._n_left > 0:
            return None
        return self._end_tokens[self._n_forced]

    def take(self, token: int) -> None:
        if self._is_over:
            return
        if token == self.due():
            self._n_forced += 1
            self._is_over = self._n_forced == len(self._end_tokens)
            return
        self._text += self._vocabulary.piece(token) or self._vocabulary.name(token).encode()
        if self._is_open:
            self._n_left -= 1
            self._is_over = self._end in self._text
            self._text = self._text[-len(self._end) :]
        else:
            begun = self._text.lstrip()
            self._is_open = begun.startswith(self._opening)
            self._is_over = not self._is_open and not self._opening.startswith(begun)
            self._text = b"" if self._is_open else self._text
