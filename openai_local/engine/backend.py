"""The seam between the engine and llama.cpp, with two real sides: LlamaBackend and a test fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from openai_local.engine.messages import ModelInfo, SamplingParams

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
# A slot's memory as bytes, shape (n_bytes,); only a backend of the same fingerprint can read it.
State = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one decode. All arrays have shape (n_tokens,).

    ``slots`` ascend, and are contiguous for speed: llama.cpp splits a batch with gaps.
    ``outputs`` is 1 where the token's logits are wanted.
    """

    tokens: Int32s
    positions: Int32s
    slots: Int32s
    outputs: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.tokens)


NO_PLACE = 1
ABORTED = 2


class DecodeFailed(Exception):
    """``llama_decode`` returned ``code``.

    After NO_PLACE the memory is as before; after any other code nothing of the batch's slots
    beyond their earlier positions can be relied on.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"llama_decode returned {code}: {reason}")
        self.code = code


class Vocabulary(Protocol):
    """Text to tokens and back. Free to every thread while the model is open."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def control_tokens(self) -> Sequence[str]:
        """The texts that become control tokens when specials are parsed."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of ``text``. Raises EngineStopped once the model is closed."""
        ...

    def bos(self) -> int | None:
        """The token that the model wants before every text, if any."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character; control tokens have none."""
        ...

    def name(self, token: int) -> str:
        """How a control token is written; "" for those that have bytes."""
        ...

    def around_pair(self) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """The tokens before, between and after two texts that the model takes together."""
        ...

    def fill_in_the_middle(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, a suffix, and what goes between; None if it has none."""
        ...

    def file_marks(self) -> tuple[int | None, int | None]:
        """The tokens before a repository's name and before a file's, where it has them."""
        ...

    def spelling(self, token: int) -> tuple[bytes, bool]:
        """The bytes that a token stands for, and whether it is a control token: those have a name
        here that no text becomes them by."""
        ...

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        ...

    def eog_tokens(self) -> Sequence[int]: ...

    def suppressed_tokens(self) -> Sequence[int]:
        """Those that the model's file says are never to be generated."""
        ...


class Draw(Protocol):
    """Chooses a token from one row of logits. Owned by one sequence."""

    def draw(self, row: Floats) -> int:
        """``row`` has shape (n_vocab,); it may be written to."""
        ...

    def accept(self, token: int) -> None:
        """``token`` is the next of the sequence, whether it was drawn or not."""
        ...

    def close(self) -> None: ...


class EmbeddingBackend(Protocol):
    """A context of its own for embeddings. Engine thread only."""

    @property
    def n_max(self) -> int:
        """The longest input in tokens."""
        ...

    @property
    def n_batch(self) -> int:
        """The most tokens that one call takes."""
        ...

    @property
    def n_seq(self) -> int:
        """The most inputs that one call takes."""
        ...

    @property
    def whole_inputs(self) -> bool:
        """Whether an input must be computed in one call, as attention that looks ahead needs."""
        ...

    @property
    def ranks(self) -> bool:
        """Whether there are scores in place of vectors."""
        ...

    def embed(self, batch: Batch) -> Floats:
        """One decode of pieces of inputs, one slot an input.

        Shape (n_slots in the batch, n_embd): with ``whole_inputs`` the pooled vectors; else the
        piece's part of the pooling, to be folded by :meth:`pool`.
        """
        ...

    def pool(self, parts: Sequence[Floats], n_tokens: int) -> Floats:
        """The vector of one input from the parts of its pieces, in order. Shape (n_embd,)."""
        ...

    def reset(self) -> None:
        """Forget all inputs."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """A model with a context for generation. Engine thread only, but for ``vocabulary``."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def n_slots(self) -> int:
        """How many sequences the memory tells apart; some more than run, where that is free."""
        ...

    @property
    def n_batch(self) -> int: ...

    @property
    def unified(self) -> bool:
        """Whether all slots take their cells from one pool."""
        ...

    @property
    def shares_cells(self) -> bool:
        """Whether a copy takes no cells of its own."""
        ...

    @property
    def n_cells(self) -> int:
        """How many tokens all slots can hold together."""
        ...

    @property
    def n_drop_max(self) -> int:
        """How many of a slot's last tokens can be dropped, and the rest be as before.

        The whole context where every token has a cell of its own; 0 where the memory is one state.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """Of the model, and of all that decides what a state means."""
        ...

    @property
    def asynchronous(self) -> bool:
        """Whether :meth:`start` returns before the work is done, and what this thread does
        meanwhile takes nothing from it."""
        ...

    def start(self, batch: Batch) -> None:
        """Begin a decode; the next call is :meth:`rows`. Raises DecodeFailed: nothing began."""
        ...

    def rows(self) -> Floats:
        """Wait for what was started. Shape (n_outputs, n_vocab), in the batch's order.

        Valid until the next start; may be written to. Raises DecodeFailed, but no NO_PLACE.
        """
        ...

    def copy(self, source: int, target: int) -> None:
        """Make ``target`` hold what ``source`` holds."""
        ...

    def save(self, slot: int) -> State | None:
        """What the slot holds; None where that cannot be had now."""
        ...

    def load(self, slot: int, state: State) -> bool:
        """Make the slot hold what was saved; False where that failed: then it is empty."""
        ...

    def truncate(self, slot: int, n_keep: int) -> bool:
        """Keep the first ``n_keep`` tokens of a slot; False where the memory cannot: then empty."""
        ...

    def draw(self, sampling: SamplingParams, seed: int, prompt: Sequence[int]) -> Draw:
        """``sampling`` has passed ``sampler_steps.check``, and is ``effective``."""
        ...

    def open_embedding(self) -> EmbeddingBackend:
        """Raises Unsupported."""
        ...

    def close(self) -> None:
        """Free everything. Safe to call twice."""
        ...
