"""What a constraint allows one generation to go on with. Engine thread only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from openai_local.engine.backend import Floats, Vocabulary
from openai_local.engine.errors import StepFailed
from openai_local.engine.messages import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Tokens that a model may put between the end of its reasoning and its answer.
BREAKS = ("\n\n", "\n", " ")
MAX_BREAKS = 2


class Guide:
    """Told of every token that a generation takes, it says which may come next."""

    def __init__(self, matcher: LLMatcher, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._eog = np.array(vocabulary.eog_tokens(), np.intp)
        self._n_vocab = vocabulary.n_tokens
        self._bits = np.zeros(-(-self._n_vocab // 32), "<i4")
        self._at, self._n_bytes = self._bits.ctypes.data, self._bits.nbytes
        self._free = _FreePart(constraint, vocabulary) if constraint.after else None
        # What may come instead of the answer's beginning: the thought's, or a break.
        self._beside: list[int] = self._free.opening[:1] if self._free else []
        self._n_breaks = 0

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return self._free is None and self._matcher.is_stopped()

    def mask(self, row: Floats) -> None:
        """Forbid what may not come next, in place: minus infinity. Raises StepFailed."""
        if self._free is not None and not self._beside:
            row[self._eog] = -np.inf
            return
        forbidden = self._forbidden()
        if self._beside:
            forbidden[self._beside] = False
        row[forbidden] = -np.inf
        if row.max() == -np.inf:
            row[~forbidden] = 0  # what else forbids them does not count then

    def take(self, token: int) -> None:
        """The generation goes on with ``token``. Raises StepFailed."""
        if self._beside:
            instead = token in self._beside and bool(self._forbidden()[token])
            if self._free is None:
                self._n_breaks += 1
                self._beside = self._beside if instead and self._n_breaks < MAX_BREAKS else []
            else:
                self._beside = []
                self._free = self._free if instead else None
            if instead and self._free is None:
                return
        if self._free is None:
            self._consume(token)
        elif (rest := self._free.take(token)) is not None:
            self._free = None
            self._begin(rest)

    def forced(self) -> list[int]:
        """The tokens that alone may come next, as many as are known; not taken yet."""
        if self._beside:
            return []
        if self._free is not None:
            return self._free.forced()
        if self._matcher.is_stopped():
            return []
        return self._matcher.compute_ff_tokens()

    def _begin(self, text: str) -> None:
        """``text`` is what the token that ended the free part had after the marker."""
        if text.strip():
            tokens = self._vocabulary.tokenize(text, add_special=False, parse_special=False)
            if self._matcher.try_consume_tokens(tokens) < len(tokens):
                raise StepFailed("the token that ended the reasoning broke the constraint")
        elif not text:
            breaks = (_tokens(self._vocabulary, text) for text in BREAKS)
            self._beside = [tokens[0] for tokens in breaks if len(tokens) == 1]

    def _forbidden(self) -> npt.NDArray[np.bool_]:
        self._matcher.unsafe_compute_mask_ptr(self._at, self._n_bytes)
        self._check()
        bits = self._bits.view(np.uint8)
        allowed = np.unpackbits(bits, count=self._n_vocab, bitorder="little")
        return np.logical_not(allowed)

    def _consume(self, token: int) -> None:
        if token not in self._eog:
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise StepFailed(f"the constraint cannot go on: {reason}")


class _FreePart:
    """What comes before the marker that a constraint waits for."""

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._marker = constraint.after.encode()
        marker = _tokens(vocabulary, constraint.after)
        self._marker_token = marker[0] if len(marker) == 1 else None
        self.opening = _tokens(vocabulary, constraint.opening) if constraint.opening else []
        self._n_opened = 0
        self._tail = b""

    def forced(self) -> list[int]:
        """The rest of the opening, once that has begun."""
        return self.opening[self._n_opened :]

    def take(self, token: int) -> str | None:
        """None until the marker has come; then what its last token had after it."""
        if self._n_opened < len(self.opening):
            self._n_opened += 1
            return None
        if token == self._marker_token:
            return ""
        piece = self._vocabulary.piece(token) or self._vocabulary.name(token).encode()
        self._tail = self._tail[-len(self._marker) :] + piece
        _, found, rest = self._tail.partition(self._marker)
        return rest.decode(errors="replace") if found else None


def _tokens(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.tokenize(text, add_special=False, parse_special=True)
