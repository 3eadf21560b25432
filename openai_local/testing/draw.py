"""A reply as the tokens that a request allows: its own words, or else anything that is valid."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from openai_local.engine import EngineError, StepFailed
from openai_local.engine.backend import Floats
from openai_local.testing.vocabulary import EOG, FakeVocabulary

N_PIECES = 2048
# What ends a value comes before what makes it longer.
_OUTSIDE = b'}],:"ntfo0123456789abcdeghijklmpqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-+.[{'
_IN_TEXT = b'"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-+.'


class PieceVocabulary(FakeVocabulary):
    """Bytes, and a token for each piece of what is said, as long as there are some."""

    def __init__(self, controls: Sequence[str], ends: Sequence[str]) -> None:
        super().__init__(controls=controls, ends=ends)
        self._first = self.n_tokens
        self.n_tokens += N_PIECES
        self._pieces: list[bytes] = []
        self._tokens: dict[bytes, int] = {}

    def token_of(self, piece: bytes) -> int | None:
        """To grammars these tokens have no spelling, so that they see all of it as bytes."""
        if piece not in self._tokens and len(self._pieces) < N_PIECES:
            self._tokens[piece] = self._first + len(self._pieces)
            self._pieces.append(piece)
        return self._tokens.get(piece)

    def piece(self, token: int) -> bytes:
        index = token - self._first
        if index < 0:
            return super().piece(token)
        return self._pieces[index] if index < len(self._pieces) else b""


def _preferences(first: bytes) -> Floats:
    """Of bytes, shape (256,): ``first`` in their order, then other marks, then space, then what
    may be no character."""
    scores = np.arange(256, 0, -1, dtype=np.float32)
    scores[list(first)] = 1000 - np.arange(len(first), dtype=np.float32)
    scores[[9, 10, 13, 32]] = [-3, -2, -1, 0]
    scores[:9] = scores[11:13] = scores[14:32] = -500
    scores[128:] -= 1000
    return scores


_PREFERENCES = {False: _preferences(_OUTSIDE), True: _preferences(_IN_TEXT)}


class ScriptedDraw:
    """Says ``pieces``, then ``end()``, which may raise, and ends.

    Where it may not go on with them it makes the shortest of what it may, unless it is
    ``strict``: then it raises StepFailed.
    """

    def __init__(
        self,
        vocabulary: PieceVocabulary,
        pieces: Sequence[str],
        *,
        delay_s: float,
        strict: bool,
        end: Callable[[], None],
    ) -> None:
        self._vocabulary = vocabulary
        self._pieces = [piece.encode() for piece in pieces]
        self._delay_s = delay_s
        self._strict = strict
        self._end = end
        self._rest = b"".join(self._pieces)
        self._n_at_piece = len(self._rest)  # how much is left where the first of them begins
        self._lost = False
        self._in_text = False  # of JSON
        self._escaped = False

    def draw(self, row: Floats) -> int:
        if self._delay_s and (self._lost or len(self._rest) == self._n_at_piece):
            time.sleep(self._delay_s)
        while not self._lost:
            token = self._next(row)
            if token is not None:
                return token
            if not self._rest[:1].isspace():
                self._lose()
                break
            self._rest = self._rest[1:]  # a grammar may want none
            self._drop_said()
        if row[EOG] > -np.inf:
            return EOG
        allowed = row[:256] > -np.inf
        if not allowed.any():
            return int(row.argmax())
        return int(np.where(allowed, _PREFERENCES[self._in_text], -np.inf).argmax())

    def _next(self, row: Floats) -> int | None:
        """The next token of the script, if it is allowed, or a space that a grammar wants."""
        if not self._rest:
            self._end()
            return EOG if row[EOG] > -np.inf else None
        if self._pieces and len(self._rest) == self._n_at_piece:
            token = self._vocabulary.token_of(self._pieces[0])
            if token is not None and row[token] > -np.inf:
                return token
        if row[self._rest[0]] > -np.inf:
            return self._rest[0]
        allowed = np.flatnonzero(row[:256] > -np.inf)
        only_space = len(allowed) > 0 and bytes(allowed.tolist()).isspace()
        return int(allowed[-1]) if only_space else None

    def accept(self, token: int) -> None:
        piece = self._vocabulary.piece(token)
        self._follow(piece)
        if self._lost or not piece:
            return
        if self._rest.startswith(piece):
            self._rest = self._rest[len(piece) :]
        elif not piece.isspace():
            stripped = self._rest.lstrip()
            if not stripped.startswith(piece):
                self._lose()
            self._rest = stripped[len(piece) :]
        self._drop_said()

    def _drop_said(self) -> None:
        while self._pieces and len(self._rest) <= self._n_at_piece - len(self._pieces[0]):
            self._n_at_piece -= len(self._pieces.pop(0))

    def _follow(self, piece: bytes) -> None:
        for byte in piece:
            if byte == ord('"') and not self._escaped:
                self._in_text = not self._in_text
            self._escaped = byte == ord("\\") and not self._escaped

    def _lose(self) -> None:
        if self._strict:
            raise StepFailed("the fake model's reply calls a tool as the request does not allow it")
        self._lost = True

    def close(self) -> None:
        pass


def fails(error: EngineError | None) -> Callable[[], None]:
    """Raises it, if there is one."""

    def end() -> None:
        if error is not None:
            raise error

    return end
