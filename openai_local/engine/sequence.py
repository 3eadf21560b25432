"""One running generation's state. Touched by the engine thread only."""

from __future__ import annotations

import time
from enum import Enum, auto

from openai_local.engine.messages import FinishReason, GenerationRequest, Usage
from openai_local.engine.prefix_cache import Upcoming
from openai_local.engine.sampling import Sampler
from openai_local.engine.text import Detokenizer


class Status(Enum):
    WAITING = auto()  # no slot yet
    PREFILL = auto()  # in a slot, its prompt partly computed
    DECODE = auto()  # one token a step, or several that a constraint forced
    ENDED = auto()


class Sequence:
    """``tokens`` is prompt and continuation; the first ``n_computed`` are in the slot's memory."""

    __slots__ = (
        "admitted_s",
        "checkpoints",
        "detokenizer",
        "fetching",
        "n_cached",
        "n_computed",
        "n_limit",
        "n_prompt",
        "request",
        "sampler",
        "sink",
        "slot",
        "status",
        "submitted_s",
        "token_s",
        "tokens",
        "upcoming",
    )

    def __init__(self, request: GenerationRequest, sampler: Sampler, n_ctx: int, sink: object):
        self.request = request
        self.sink = sink
        self.sampler = sampler
        self.detokenizer = Detokenizer(request.stop)
        self.tokens = list(request.prompt_tokens)
        self.n_prompt = len(self.tokens)
        room = n_ctx - self.n_prompt
        wanted = request.max_tokens
        self.n_limit = self.n_prompt + (room if wanted is None else min(room, wanted))
        self.n_computed = 0
        self.n_cached = 0
        self.slot = -1
        self.status = Status.WAITING
        self.submitted_s = time.monotonic()
        self.admitted_s: float | None = None  # to a slot, for the first time
        self.token_s: float | None = None  # when it got its last token
        self.checkpoints: set[int] = set()  # numbers of tokens at which its state is to be saved
        self.fetching = False  # the disk reads a part of its prompt
        self.upcoming: Upcoming | None = None  # what it waits for before it takes a slot

    @property
    def cache_salt(self) -> str:
        return self.request.cache_salt

    @property
    def n_completion(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_to_compute(self) -> int:
        return len(self.tokens) - self.n_computed

    @property
    def n_to_checkpoint(self) -> int:
        """How many to compute until its state is to be saved, or its prompt is done."""
        ahead = [n for n in self.checkpoints if n > self.n_computed]
        return min(ahead, default=len(self.tokens)) - self.n_computed

    def usage(self) -> Usage:
        return Usage(self.n_prompt, self.n_completion, self.n_cached)

    def accept(self, token: int, piece: bytes, is_eog: bool) -> tuple[str, FinishReason | None]:
        """Take the sampled token: the text that it releases, and why the generation ends, if so.

        An end-of-generation token counts as a token of the completion and has no text.
        """
        self.tokens.append(token)
        if is_eog:
            return self.detokenizer.finish(), "stop"
        text = self.detokenizer.feed(piece)
        if self.detokenizer.stopped:
            return text, "stop"
        if len(self.tokens) >= self.n_limit:
            text += self.detokenizer.finish()
            return text, "stop" if self.detokenizer.stopped else "length"
        return text, None
