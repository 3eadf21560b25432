"""Text to tokens and back. Free to every thread until the model is closed."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp as lib

from openai_local.engine.errors import EngineStopped

# Some vocabularies split words with std::regex, which recurses once a character: a run of 20,000
# to 60,000 letters overflows a stack of 8 MiB and ends the process.
# The classes are C++'s: Python's \s has more characters.
_LONG_RUN = re.compile(r"[^\t-\r ]{4097,}|[\t-\r ]{4097,}")
_MAX_RUN = 4096
MANY_SPECIALS = 512


class LlamaVocabulary:
    """The model's vocabulary; free to every thread until the model is closed."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self._condition = threading.Condition()
        self._n_users = 0
        self._closed = False
        self._pieces: dict[int, bytes] = {}
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        hidden = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        names: dict[int, str] = {}
        eog: list[int] = []
        for token in range(self.n_tokens):
            if lib.llama_vocab_is_eog(self._vocab, token):
                eog.append(token)
            if lib.llama_vocab_get_attr(self._vocab, token) & hidden:
                names[token] = self._text(token)
        self.control_tokens: Sequence[str] = tuple(text for text in names.values() if text)
        self._names = names
        self._eog = tuple(eog)
        self._eog_set = frozenset(eog)
        bos = lib.llama_vocab_bos(self._vocab)
        eos = lib.llama_vocab_eos(self._vocab)
        self._bos: int | None = (
            bos if bos >= 0 and lib.llama_vocab_get_add_bos(self._vocab) else None
        )
        self._eos: int | None = (
            eos if eos >= 0 and lib.llama_vocab_get_add_eos(self._vocab) else None
        )
        fim = (
            lib.llama_vocab_fim_pre(self._vocab),
            lib.llama_vocab_fim_suf(self._vocab),
            lib.llama_vocab_fim_mid(self._vocab),
        )
        self._fim = fim if min(fim) >= 0 else None
        repository = lib.llama_vocab_fim_rep(self._vocab)
        file = lib.llama_vocab_fim_sep(self._vocab)
        self._file_marks = (
            repository if repository >= 0 else None,
            file if file >= 0 else None,
        )
        self._around_pair = self._read_around_pair()
        n_suppressed = ctypes.c_int32(0)
        suppressed = lib.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(n_suppressed))
        self._suppressed = (
            tuple(token for token in suppressed[: n_suppressed.value] if 0 <= token < self.n_tokens)
            if n_suppressed.value
            else ()
        )
        self._is_bpe = lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_BPE
        texts = sorted(self.control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        self.bos_text = self._text(bos) if bos >= 0 else ""
        self.eos_text = self._text(eos) if eos >= 0 else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. Raises EngineStopped once the model is closed."""
        risky = len(text) > _MAX_RUN and (_LONG_RUN.search(text) or self._is_costly(text))
        if not (self._is_bpe and risky):
            return self._tokenize(text, add_special, parse_special)
        tokens = [self._bos] if add_special and self._bos is not None else []
        at = 0
        for match in self._control.finditer(text) if parse_special and self._control else ():
            tokens += self._tokenize_plain(text[at : match.start()])
            tokens += self._tokenize(match.group(), False, True)
            at = match.end()
        tokens += self._tokenize_plain(text[at:])
        if add_special and self._eos is not None:
            tokens.append(self._eos)
        return tokens

    def _is_costly(self, text: str) -> bool:
        """llama.cpp's search for special tokens takes time with the square of their number."""
        return self._control is not None and len(self._control.findall(text)) > MANY_SPECIALS

    def _tokenize_plain(self, text: str) -> list[int]:
        tokens: list[int] = []
        for piece in _bounded_runs(text):
            tokens += self._tokenize(piece, False, False)
        return tokens

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        with self._open():
            n_max = len(data) + 8
            buffer = (lib.llama_token * n_max)()
            n = lib.llama_tokenize(
                self._vocab, data, len(data), buffer, n_max, add_special, parse_special
            )
            if n < 0:
                buffer = (lib.llama_token * -n)()
                n = lib.llama_tokenize(
                    self._vocab, data, len(data), buffer, -n, add_special, parse_special
                )
            return list(buffer[:n])

    def bos(self) -> int | None:
        return self._bos

    def piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            with self._open():
                piece = self._pieces[token] = self._read_piece(token)
        return piece

    def name(self, token: int) -> str:
        return self._names.get(token, "")

    def around_pair(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        return self._around_pair

    def _read_around_pair(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """As llama-server puts a query and a document together."""
        eos, sep = lib.llama_vocab_eos(self._vocab), lib.llama_vocab_sep(self._vocab)
        end = [eos if eos >= 0 else sep] if lib.llama_vocab_get_add_eos(self._vocab) else []
        between = [*end, sep] if lib.llama_vocab_get_add_sep(self._vocab) else end
        before = [] if self._bos is None else [self._bos]
        return before, [t for t in between if t >= 0], [t for t in end if t >= 0]

    def fill_in_the_middle(self) -> tuple[int, int, int] | None:
        return self._fim

    def file_marks(self) -> tuple[int | None, int | None]:
        return self._file_marks

    def spelling(self, token: int) -> tuple[bytes, bool]:
        with self._open():
            attributes = lib.llama_vocab_get_attr(self._vocab, token)
            text: bytes = lib.llama_vocab_get_text(self._vocab, token) or b""
        # Those that a user defined are often markers, which text may not be split into.
        special = bool(attributes & lib.LLAMA_TOKEN_ATTR_CONTROL) or (
            bool(attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED)
            and text.startswith(b"<")
            and text.endswith(b">")
        )
        return (text, True) if special else (self.piece(token), False)

    def is_eog(self, token: int) -> bool:
        return token in self._eog_set

    def eog_tokens(self) -> Sequence[int]:
        return self._eog

    def suppressed_tokens(self) -> Sequence[int]:
        return self._suppressed

    def close(self) -> None:
        """Wait for those inside, let nobody else in."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: self._n_users == 0)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._condition:
            if self._closed:
                raise EngineStopped
            self._n_users += 1
        try:
            yield
        finally:
            with self._condition:
                self._n_users -= 1
                self._condition.notify_all()

    def _text(self, token: int) -> str:
        text: bytes = lib.llama_vocab_get_text(self._vocab, token) or b""
        return text.decode(errors="replace")

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            size = -n


def _bounded_runs(text: str) -> Iterator[str]:
    """``text`` in pieces, cut only within long runs of letters or of spaces."""
    start = 0
    for match in _LONG_RUN.finditer(text):
        for cut in range(match.start() + _MAX_RUN, match.end(), _MAX_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]
