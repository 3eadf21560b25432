"""A vocabulary of bytes, in which every text is the same tokens in every run."""

from __future__ import annotations

import re
from collections.abc import Sequence

EOG = 256
BOS = 257
CONTROL = 258
N_VOCAB = 260


class FakeVocabulary:
    """A token a byte; 256 ends a text, 257 begins it if wanted, 258 is written <|control|>.

    ``controls`` are more control tokens, from 260 on; those of ``ends`` end a text, too.
    """

    marks_of_files: tuple[int | None, int | None] = (None, None)

    def __init__(
        self,
        add_bos: bool = False,
        fim: tuple[int, int, int] | None = None,
        controls: Sequence[str] = (),
        ends: Sequence[str] = (),
    ) -> None:
        self._add_bos = add_bos
        self._fim = fim
        self.n_tokens = N_VOCAB + len(controls)
        self.control_tokens = ("<|control|>", *controls)
        self._ids = {"<|control|>": CONTROL}
        self._ids.update((text, N_VOCAB + i) for i, text in enumerate(controls))
        self._names = {EOG: "<|end|>", BOS: "<|begin|>"}
        self._names.update((token, text) for text, token in self._ids.items())
        self._eog = (EOG, *(self._ids[text] for text in ends))
        self._split = re.compile(f"({'|'.join(map(re.escape, self._ids))})")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        tokens = [BOS] if add_special and self._add_bos else []
        for piece in self._split.split(text) if parse_special else [text]:
            known = parse_special and piece in self._ids
            tokens += [self._ids[piece]] if known else list(piece.encode())
        return tokens

    def bos(self) -> int | None:
        return BOS if self._add_bos else None

    def piece(self, token: int) -> bytes:
        assert 0 <= token < self.n_tokens, "only tokens have pieces"
        return bytes([token]) if token < 256 else b""

    def name(self, token: int) -> str:
        return self._names.get(token, "")

    def around_pair(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        return ([BOS] if self._add_bos else [], [EOG, CONTROL], [EOG])

    def fill_in_the_middle(self) -> tuple[int, int, int] | None:
        return self._fim

    def file_marks(self) -> tuple[int | None, int | None]:
        return self.marks_of_files

    def spelling(self, token: int) -> tuple[bytes, bool]:
        if token < 256:
            return bytes([token]), False
        return self._names.get(token, "<|unused|>").encode(), True

    def is_eog(self, token: int) -> bool:
        return token in self._eog

    def eog_tokens(self) -> Sequence[int]:
        return self._eog

    def suppressed_tokens(self) -> Sequence[int]:
        return ()
