"""The model's log-probabilities of tokens, and which of them are told with which text.

Of the logits as the model gave them: bias, penalties, temperature and grammars come later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openai_local.engine.backend import Floats, Vocabulary
from openai_local.engine.messages import FinishReason, TokenLogprob
from openai_local.engine.text import Detokenizer

# The largest k tokens are found by the maxima of blocks: 0.05 ms where a partition takes 0.5.
BLOCK = 256
# JSON has no infinity; OpenAI's stand-in for what is very unlikely.
LOWEST = -9999.0
# The rows that one decode may make of prompts whose logprobs are wanted.
MAX_ROW_BYTES = 32 << 20


class LogprobReader:
    """Reads one row of logits at a time: what holds it is shared. Engine thread only."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        n = vocabulary.n_tokens
        self._blocks = np.full((-(-n // BLOCK), BLOCK), -np.inf, np.float32)
        self._row: Floats = self._blocks.reshape(-1)[:n]

    def hold(self, row: Floats) -> None:
        """Keep a row, shape (n_vocab,), that will be written to."""
        self._row[:] = row

    def of(self, token: int, n_top: int) -> TokenLogprob:
        """``token``, with the ``n_top`` likeliest, by the row that is held."""
        row = self._row
        highest = row.max()
        total = np.exp(row - highest).sum(dtype=np.float64)
        offset = float(highest) + float(np.log(total))
        top = tuple(self._entry(int(i), row, offset) for i in self._top(n_top))
        return self._entry(token, row, offset, top)

    def read_token(
        self,
        trail: LogprobTrail | None,
        token: int,
        start: int | None,
        text: Detokenizer,
        reason: FinishReason | None,
    ) -> tuple[TokenLogprob, ...]:
        """What goes with the text that ``token`` released, by the row that is held.

        It begins at the character ``start``, or, None, has no text. ``reason`` is why the text
        ends with it, if it does.
        """
        if trail is None:
            return ()
        entry = self.of(token, trail.n_top)
        trail.count(entry)
        if start is not None:
            trail.add(entry, start, text)
        return trail.release(text, ended=reason is not None)

    def read_prompt(self, trail: LogprobTrail, prompt: Seq[int], first: int, rows: Floats) -> None:
        """``rows``, shape (n, n_vocab), are of the tokens after ``prompt[first]`` and on."""
        if not trail.prompt:
            trail.prompt.append(self._told(prompt[0], None, ()))  # before it there is nothing
        for at, row in enumerate(rows, first + 1):
            if at == len(trail.prompt) and at < len(prompt):
                self.hold(row)
                trail.prompt.append(self.of(prompt[at], trail.n_top))

    def _top(self, n: int) -> npt.NDArray[np.intp]:
        row = self._row
        n = min(n, len(row))
        if n == 0:
            return np.empty(0, np.intp)
        maxima = self._blocks.max(axis=1)
        # Each of the n largest maxima is a token, so the n largest tokens are no less.
        bound = np.partition(maxima, -n)[-n] if n < len(maxima) else -np.inf
        ids = np.flatnonzero(row >= bound)
        return ids[np.argsort(-row[ids], kind="stable")[:n]]

    def _entry(
        self, token: int, row: Floats, offset: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        return self._told(token, max(float(row[token]) - offset, LOWEST), top)

    def _told(
        self, token: int, logprob: float | None, top: tuple[TokenLogprob, ...]
    ) -> TokenLogprob:
        vocabulary = self._vocabulary
        return TokenLogprob(token, vocabulary.piece(token), vocabulary.name(token), logprob, top)


@dataclass(frozen=True, slots=True)
class _Held:
    entry: TokenLogprob
    start: int  # the character in which it begins
    end: int  # how many characters are out when it is


class LogprobTrail:
    """Of one sequence: what was read, and is told as its text is released.

    A token goes with the delta that has its last character. Of the tokens of a stop string those
    are left out of which no character is in the text.
    """

    def __init__(self, n_top: int) -> None:
        self.n_top = n_top
        self.prompt: list[TokenLogprob] = []
        self.total = 0.0
        self._held: deque[_Held] = deque()

    def add(self, entry: TokenLogprob, start: int, text: Detokenizer) -> None:
        """``text`` was fed it; it had decoded ``start`` characters before."""
        self._held.append(_Held(entry, start, text.n_decoded + text.is_inside_character))

    def count(self, entry: TokenLogprob) -> None:
        """It is a token of the completion, whether it has text or not."""
        self.total += entry.logprob or 0.0

    def release(self, text: Detokenizer, *, ended: bool) -> tuple[TokenLogprob, ...]:
        """What ``text`` has let out by now; no more comes after the end."""
        out: list[TokenLogprob] = []
        while self._held and self._is_out(self._held[0], text, ended):
            out.append(self._held.popleft().entry)
        return tuple(out)

    @staticmethod
    def _is_out(held: _Held, text: Detokenizer, ended: bool) -> bool:
        if ended:
            return held.start < text.n_released or not text.stopped
        return held.end <= text.n_released


def n_rows_at_once(n_vocab: int) -> int:
    """How many rows of logits the prompts in one decode may make."""
    return max(1, MAX_ROW_BYTES // (4 * n_vocab))
