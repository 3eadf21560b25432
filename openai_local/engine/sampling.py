"""Logits to a token: bias and penalties here, on the few tokens they touch; the draw behind.

Penalties follow the OpenAI reference (presence and frequency, over the generated text) and
llama.cpp (repeat_penalty, over the last ``repeat_last_n`` tokens, the prompt's included).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from openai_local.engine.backend import Draw, Floats
from openai_local.engine.constraints.guide import Guide
from openai_local.engine.messages import SamplingParams
from openai_local.engine.sampler_steps import penalties_first
from openai_local.engine.thought import ThoughtCloser


class Sampler:
    """The choice of one sequence's tokens. Engine thread only."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_tokens: Sequence[int],
        eog_tokens: Sequence[int],
        draw: Draw | None,
        *,
        stop_tokens: Sequence[int] = (),
        never: Sequence[int] = (),
        guide: Guide | None = None,
        closer: ThoughtCloser | None = None,
    ) -> None:
        """``draw`` None is greedy. ``stop_tokens`` end the generation as ``eog_tokens`` do;
        those of ``never`` the model is not to say. ``guide`` has the last word on what may come,
        ``closer`` on when a thought ends."""
        self._guide = guide
        self._closer = closer
        bias = {**params.logit_bias, **dict.fromkeys(never, -np.inf)}
        if params.ignore_eos:
            bias.update(dict.fromkeys(eog_tokens, -np.inf))
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._end_ids = np.array([*eog_tokens, *stop_tokens], np.int64)
        self._n_to_min = params.min_tokens
        self._draw = draw
        # Where they come later, the draw has them.
        here = penalties_first(params)
        self._presence = params.presence_penalty if here else 0.0
        self._frequency = params.frequency_penalty if here else 0.0
        self._counts: Counter[int] | None = Counter() if self._presence or self._frequency else None
        self._repeat = params.repeat_penalty if here else 1.0
        window = None if params.repeat_last_n == -1 else params.repeat_last_n
        self._recent: deque[int] | None = (
            deque(prompt_tokens, maxlen=window) if self._repeat != 1.0 else None
        )

    def sample(self, row: Floats) -> int:
        """The next token, which is then accepted. ``row`` (n_vocab,) is edited in place."""
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self._n_to_min > 0:
            row[self._end_ids] = -np.inf
        if self._recent:
            ids = np.fromiter(set(self._recent), np.int64)
            logits = row[ids]
            row[ids] = np.where(logits <= 0, logits * self._repeat, logits / self._repeat)
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            row[ids] -= counts * np.float32(self._frequency) + np.float32(self._presence)
        if self._guide is not None:
            self._guide.mask(row)
        if self._closer is not None and (due := self._closer.due()) is not None:
            if row[due] > -np.inf or self._guide is None:
                row[:] = -np.inf
                row[due] = 0
        token = int(row.argmax()) if self._draw is None else self._draw.draw(row)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """The generation goes on with ``token``, sampled here or forced. Raises StepFailed."""
        self._n_to_min -= 1
        if self._counts is not None:
            self._counts[token] += 1
        if self._recent is not None:
            self._recent.append(token)
        if self._draw is not None:
            self._draw.accept(token)
        if self._guide is not None:
            self._guide.take(token)
        if self._closer is not None:
            self._closer.take(token)

    def forced(self) -> list[int]:
        """The tokens that a constraint leaves no choice about, to be accepted next."""
        return [] if self._guide is None else self._guide.forced()

    @property
    def done(self) -> bool:
        """Whether a constraint lets nothing follow."""
        return self._guide is not None and self._guide.done

    def close(self) -> None:
        """Free the draw. Safe to call twice."""
        draw, self._draw = self._draw, None
        if draw is not None:
            draw.close()
