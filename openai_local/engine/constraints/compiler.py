"""Constraints compiled for one model's vocabulary: bounded, cached, and on threads of their own.

The only importer of llguidance but for the grammars' text, and that on first use.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

import numpy as np

from openai_local.engine.backend import Vocabulary
from openai_local.engine.constraints.grammars import grammar_of
from openai_local.engine.constraints.guide import Guide
from openai_local.engine.errors import (
    ConstraintUnsupported,
    InvalidConstraint,
    Unsupported,
)
from openai_local.engine.messages import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_TEXT_BYTES = 256 << 10
MAX_SECONDS = 10.0
# Compilations that were given up go on until their own limits; more than these wait for them.
MAX_AT_ONCE = 2
# llguidance recurses over a schema: this holds what json_schema.MAX_SUBSCHEMAS lets through.
STACK_BYTES = 64 << 20
PROBE_TOKENS = 6
# A state takes 1 to 2 kB, and all generations of one constraint share them.
MAX_LEXER_STATES = 50_000
CACHE_BYTES = 8 << 20
CACHE_ENTRIES = 256

_stack_size_lock = threading.Lock()


class Compiled:
    """A constraint ready for use; each generation takes a :meth:`guide` of its own."""

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self.constraint = constraint
        self.vocabulary = vocabulary
        self._matcher = matcher

    def guide(self) -> Guide:
        """On the engine's thread."""
        return Guide(self._matcher.deep_copy(), self.constraint, self.vocabulary)


class ConstraintCompiler:
    """Compiles for one vocabulary. Safe to use from several threads; blocks them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Constraint, Future[Compiled]] = OrderedDict()
        self._n_bytes = 0
        self._turns = threading.Semaphore(MAX_AT_ONCE)
        self._tokenizer_lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def compile(self, constraint: Constraint) -> Compiled:
        """Raises InvalidConstraint, ConstraintUnsupported, Unsupported, EngineStopped."""
        try:
            return self.begin(constraint).result(MAX_SECONDS)
        except FutureTimeout:
            raise too_slow() from None

    def begin(self, constraint: Constraint) -> Future[Compiled]:
        """As :meth:`compile`, without waiting. Raises ConstraintUnsupported."""
        n_bytes = len(constraint.text.encode(errors="replace"))
        if n_bytes > MAX_TEXT_BYTES:
            reason = f"it has {n_bytes} bytes, and at most {MAX_TEXT_BYTES} may it have"
            raise ConstraintUnsupported(None, reason)
        with self._lock:
            future = self._compiled.get(constraint)
            if future is not None:
                self._compiled.move_to_end(constraint)
                return future
            future = self._compiled[constraint] = Future()
            future.set_running_or_notify_cancel()  # others may wait for it: nobody may cancel it
            self._n_bytes += n_bytes
            self._evict()
        self._start(constraint, future)
        return future

    def _start(self, constraint: Constraint, future: Future[Compiled]) -> None:
        def work() -> None:
            with self._turns:
                try:
                    future.set_result(self._compile(constraint))
                except BaseException as error:
                    self._forget(constraint, future)
                    future.set_exception(error)

        try:
            _start_thread(work)
        except (RuntimeError, ValueError) as error:
            self._forget(constraint, future)
            future.set_exception(ConstraintUnsupported(None, f"no thread to compile it: {error}"))

    def _compile(self, constraint: Constraint) -> Compiled:
        try:
            return self._compile_grammar(constraint, grammar_of(constraint))
        except ConstraintUnsupported as error:
            if error.keyword != "oneOf":
                raise
            try:
                return self._compile_grammar(constraint, grammar_of(constraint, one_of=True))
            except InvalidConstraint:
                raise error from None

    def _compile_grammar(self, constraint: Constraint, grammar: str) -> Compiled:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(self.tokenizer(), grammar, log_level=0, limits=limits)
        # The first mask finds what nothing satisfies, and leaves its states for all that follow.
        token = self._first_allowed(constraint, matcher)
        if token is None:
            raise InvalidConstraint(None, "nothing but the empty text satisfies it")
        # What is beyond llguidance's limits shows in the first steps, nearly always.
        probe = matcher.deep_copy()
        for _ in range(PROBE_TOKENS):
            if token is not None:
                probe.consume_token(token)
                token = self._first_allowed(constraint, probe)
        warnings = matcher.get_grammar_warnings()
        if warnings:
            raise ConstraintUnsupported(None, "; ".join(warnings))
        return Compiled(constraint, self._vocabulary, matcher)

    def _first_allowed(self, constraint: Constraint, matcher: LLMatcher) -> int | None:
        """Of the tokens that may come next, the end aside."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise _translate(constraint, matcher.get_error())
        allowed = np.unpackbits(bits, bitorder="little")
        allowed[list(self._vocabulary.eog_tokens())] = 0
        return int(allowed.argmax()) if allowed.any() else None

    def tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance wants it. Raises Unsupported, EngineStopped."""
        from llguidance import LLTokenizer

        with self._tokenizer_lock:
            if self._tokenizer is None:
                eog = list(self._vocabulary.eog_tokens())
                if not eog:
                    raise Unsupported("constraints: its vocabulary has no end")
                tokenizer: Any = _Tokenizer(self._vocabulary)
                self._tokenizer = LLTokenizer(tokenizer, eos_token=eog)
            return self._tokenizer

    def _forget(self, constraint: Constraint, future: Future[Compiled]) -> None:
        with self._lock:
            if self._compiled.get(constraint) is future:
                del self._compiled[constraint]
                self._n_bytes -= len(constraint.text.encode(errors="replace"))

    def _evict(self) -> None:
        while len(self._compiled) > 1 and (
            self._n_bytes > CACHE_BYTES or len(self._compiled) > CACHE_ENTRIES
        ):
            constraint, _ = self._compiled.popitem(last=False)
            self._n_bytes -= len(constraint.text.encode(errors="replace"))


class _Tokenizer:
    """What ``LLTokenizer`` asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        spellings = [vocabulary.spelling(token) for token in range(vocabulary.n_tokens)]
        self.tokens = [text for text, _ in spellings]
        self.special_token_ids = [i for i, (_, special) in enumerate(spellings) if special]
        self.eos_token_id = vocabulary.eog_tokens()[0]
        self._before = ""
        self._n_before = 0
        if not self._is_exact():
            self._add_sentinel()

    def __call__(self, text: str) -> list[int]:
        return self._tokenize(self._before + text)[self._n_before :]

    def _tokenize(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False)

    def _is_exact(self) -> bool:
        return b"".join(self.tokens[token] for token in self("a")) == b"a"

    def _add_sentinel(self) -> None:
        """Some tokenizers put a space before every text: then there is always another before."""
        for code in range(1, 32):
            self._before = chr(code)
            self._n_before = len(self._tokenize(self._before))
            if self._is_exact():
                return
        raise Unsupported("constraints: its tokenizer changes what it splits")


def too_slow() -> ConstraintUnsupported:
    return ConstraintUnsupported(None, f"it takes more than {MAX_SECONDS:g} s to compile")


def _start_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, name="openai_local constraint", daemon=True)
    with _stack_size_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)


# What llguidance's messages begin with, or contain, and the keyword that they are about.
_KEYWORDS = (
    (re.compile(r'Unimplemented keys: \["([^"]+)"'), None),
    (re.compile(r"Expected \w[\w ]* for '(\w+)'"), None),
    (re.compile(r"^(\w+) must be an? "), None),
    (re.compile(r"oneOf constraints"), "oneOf"),
    (re.compile(r"min/maxProperties"), "minProperties"),
    (re.compile(r"patternProperty"), "patternProperties"),
    (re.compile(r"multiple ?[oO]f"), "multipleOf"),
    (re.compile(r"Invalid type"), "type"),
    (re.compile(r"\$ref|circular references"), "$ref"),
    (re.compile(r"regex"), "pattern"),
)


def _translate(constraint: Constraint, message: str) -> InvalidConstraint:
    reason = message.partition("\n<")[0].strip()
    if constraint.kind not in ("json_schema", "json_object"):
        return InvalidConstraint(constraint.kind, reason)
    if "nsatisfiable" in reason:
        return InvalidConstraint(None, reason)
    for pattern, keyword in _KEYWORDS:
        if match := pattern.search(reason):
            return ConstraintUnsupported(keyword or match.group(1), reason)
    return ConstraintUnsupported(None, reason)
