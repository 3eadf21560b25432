"""One running generation's state. Touched by the engine thread only."""

from __future__ import annotations

import time
from enum import Enum, auto

from openai_local.engine.cache.disk_index import IN_MEMORY
from openai_local.engine.cache.prefix_cache import Upcoming
from openai_local.engine.logprobs import LogprobTrail
from openai_local.engine.messages import FinishReason, GenerationRequest, Timings, Usage
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
        "first_token_s",
        "had_line_break",
        "n_cached",
        "n_computed",
        "n_limit",
        "n_prompt",
        "n_told",
        "request",
        "sampler",
        "sink",
        "slot",
        "status",
        "submitted_s",
        "token_s",
        "tokens",
        "trail",
        "upcoming",
    )

    def __init__(self, request: GenerationRequest, sampler: Sampler, n_ctx: int, sink: object):
        self.request = request
        self.sink = sink
        self.sampler = sampler
        self.detokenizer = Detokenizer(request.stop, request.unstopped)
        self.tokens = list(request.prompt_tokens)
        self.n_prompt = len(self.tokens)
        room = n_ctx - self.n_prompt
        wanted = request.max_tokens
        self.n_limit = self.n_prompt + (room if wanted is None else min(room, wanted))
        self.n_computed = 0
        self.n_cached = 0
        self.n_told = 0  # tokens of the completion before the last piece of text
        self.slot = -1
        self.status = Status.WAITING
        self.submitted_s = time.monotonic()
        self.admitted_s: float | None = None  # to a slot, for the first time
        self.first_token_s: float | None = None  # when it got its first token
        self.token_s: float | None = None  # when it got its last token
        self.had_line_break = False
        self.trail: LogprobTrail | None = (
            None if request.logprobs is None else LogprobTrail(request.logprobs)
        )
        self.checkpoints: set[int] = set()  # numbers of tokens at which its state is to be saved
        self.fetching = False  # the disk reads a part of its prompt
        self.upcoming: Upcoming | None = None  # what it waits for before it takes a slot

    @property
    def cache_salt(self) -> str:
        salt = self.request.cache_salt
        return f"{IN_MEMORY}{salt}" if self.request.in_memory else salt

    @property
    def n_completion(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_to_compute(self) -> int:
        return len(self.tokens) - self.n_computed

    @property
    def n_to_checkpoint(self) -> int:
        """How many to compute until its state is to be saved, or its prompt is done."""
        if not self.checkpoints:
            return self.n_to_compute
        ahead = [n for n in self.checkpoints if n > self.n_computed]
        return min(ahead, default=len(self.tokens)) - self.n_computed

    @property
    def reads_prompt(self) -> bool:
        """Whether the logits of every token it computes are wanted, for its prompt's logprobs."""
        trail = self.trail
        return (
            trail is not None and self.request.prompt_logprobs and len(trail.prompt) < self.n_prompt
        )

    @property
    def n_reuse_max(self) -> int:
        """How many of its tokens may come from what was computed before."""
        if self.trail is not None and self.reads_prompt:
            return max(len(self.trail.prompt) - 1, 0)
        if not self.request.reuse and self.admitted_s is None:
            return 0
        return len(self.tokens)

    def ends(self, token: int, is_eog: bool) -> bool:
        return is_eog or token in self.request.stop_tokens

    def take_untold(self) -> int:
        """How many tokens came since this was asked last."""
        n_untold = self.n_completion - self.n_told
        self.n_told = self.n_completion
        return n_untold

    def timings(self) -> Timings | None:
        """Until its last token; None where nobody asked."""
        if not self.request.timings or self.admitted_s is None:
            return None
        first = self.first_token_s or time.monotonic()
        last = self.token_s or first
        n_computed = self.n_prompt - self.n_cached
        return Timings(
            self.n_cached, n_computed, first - self.admitted_s, self.n_completion, last - first
        )

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
        self.had_line_break |= b"\n" in piece
        if len(self.tokens) >= self.n_limit or self._is_out_of_time():
            text += self.detokenizer.finish()
            return text, "stop" if self.detokenizer.stopped else "length"
        return text, None

    def _is_out_of_time(self) -> bool:
        limit, first = self.request.max_seconds, self.first_token_s
        if limit is None or first is None or not self.had_line_break:
            return False
        return time.monotonic() - first >= limit
