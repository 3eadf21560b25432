"""A deterministic backend at the engine's seam: no model, no llama.cpp, and it sees every mistake.

The next token is a function of all tokens that a slot really holds, so a wrong position, a wrong
copy or a stale prefix changes the text. What llama.cpp would abort on is an assertion here.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from openai_local.engine import ModelInfo, SamplingParams
from openai_local.engine.backend import NO_PLACE, Batch, DecodeFailed, Draw, Floats, State
from openai_local.testing.vocabulary import EOG, FakeVocabulary

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

NextToken = Callable[[Sequence[int]], int]


def letters(tokens: Sequence[int]) -> int:
    """A small letter that depends on every token before it."""
    return 97 + zlib.crc32(np.asarray(tokens, np.int32).tobytes()) % 26


class FakeDraw:
    """Greedy, but a letter further for each step of the seed."""

    open_draws = 0

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._closed = False
        FakeDraw.open_draws += 1

    def draw(self, row: Floats) -> int:
        token = int(row.argmax())
        further = token if token == EOG else 97 + (token - 97 + self._seed) % 26
        return further if row[further] > -np.inf else token

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        assert not self._closed, "a draw is closed once"
        self._closed = True
        FakeDraw.open_draws -= 1


class FakeEmbedding:
    """Counts letters: the mean of one-hot vectors of ``token % n_embd``."""

    n_seq = 4

    def __init__(self, n_embd: int, n_batch: int, whole_inputs: bool, ranks: bool) -> None:
        self.n_max = 64
        self.ranks = ranks
        self.n_batch = 64 if whole_inputs else n_batch
        self.whole_inputs = whole_inputs
        self._n_embd = n_embd
        self._held: dict[int, int] = {}

    def embed(self, batch: Batch) -> Floats:
        assert 0 < len(batch) <= self.n_batch
        rows = []
        for slot in np.unique(batch.slots):
            assert 0 <= slot < self.n_seq
            here = batch.slots == slot
            first = self._held.get(int(slot), 0)
            assert list(batch.positions[here]) == list(range(first, first + here.sum()))
            self._held[int(slot)] = first + int(here.sum())
            row = np.zeros(self._n_embd, np.float32)
            np.add.at(row, batch.tokens[here] % self._n_embd, 1)
            rows.append(row)
        return np.stack(rows)

    def pool(self, parts: Sequence[Floats], n_tokens: int) -> Floats:
        return np.asarray(np.sum(parts, axis=0) / n_tokens, np.float32)

    def reset(self) -> None:
        self._held.clear()

    def close(self) -> None:
        pass


class FakeBackend:
    """Slots that hold token lists; ``faults`` gives the code with which a decode fails, and
    ``state_faults`` tells whether the next save or load does."""

    def __init__(
        self,
        *,
        n_ctx: int = 256,
        n_slots: int = 4,
        n_batch: int = 64,
        next_token: NextToken | None = letters,
        can_generate: bool = True,
        n_drop_max: int | None = None,
        n_cells: int | None = None,
        n_parallel: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = TEMPLATE,
        sampling_defaults: dict[str, float] | None = None,
        step_s: float = 0.0,
        faults: Callable[[Batch], int] = lambda batch: 0,
        state_faults: Callable[[], bool] = lambda: False,
        whole_inputs: bool = False,
        can_rank: bool = False,
        rerank_template: str | None = None,
        fim: tuple[int, int, int] | None = None,
        controls: Sequence[str] = (),
        ends: Sequence[str] = (),
        asynchronous: bool = False,
        vocabulary: FakeVocabulary | None = None,
    ) -> None:
        self.asynchronous = asynchronous
        self._started: Floats | DecodeFailed | None = None  # what rows are to give
        self.n_slots = n_slots
        self.n_batch = n_batch
        self.vocabulary = vocabulary or FakeVocabulary(add_bos, fim, controls, ends)
        self.slots: list[list[int]] = [[] for _ in range(n_slots)]
        self.closed = False
        self.batches: list[Batch] = []
        self.sampled: list[SamplingParams] = []  # what every draw was made for
        self._next_token = next_token
        # A pool of cells makes it the unified layout.
        self.unified = n_cells is not None
        self._windowed = bool(n_drop_max)
        self.shares_cells = self.unified and not self._windowed
        # A state of a window has no more than the last tokens look back to.
        self._n_whole = [0] * n_slots
        self.n_cells = n_ctx * n_slots if n_cells is None else n_cells
        self.n_drop_max = n_ctx if n_drop_max is None else n_drop_max
        self.fingerprint = "fake"
        self._copying: set[int] = set()
        self._cells: list[list[object]] = [[] for _ in range(n_slots)]
        self._step_s = step_s
        self._faults = faults
        self._state_faults = state_faults
        self._n_refused = 0
        self._whole_inputs = whole_inputs
        n_vocab = self.vocabulary.n_tokens
        self.info = ModelInfo(
            path="fake.gguf", description="fake", n_params=0, n_vocab=n_vocab, n_embd=8,
            n_ctx_train=n_ctx, n_ctx=n_ctx, n_parallel=n_parallel or n_slots,
            can_generate=can_generate, chat_template=chat_template, bos_token="", eos_token="",
            sampling_defaults=sampling_defaults or {}, can_rank=can_rank,
            rerank_template=rerank_template,
        )  # fmt: skip

    def start(self, batch: Batch) -> None:
        """A fault other than NO_PLACE shows when the rows are asked for, if asynchronous."""
        self._check_rests()
        try:
            self._started = self._decode(batch)
        except DecodeFailed as failure:
            if failure.code == NO_PLACE or not self.asynchronous:
                raise
            self._started = failure

    def rows(self) -> Floats:
        started, self._started = self._started, None
        assert started is not None, "a decode was started"
        if isinstance(started, DecodeFailed):
            raise started
        return started

    def _check_rests(self) -> None:
        assert self._started is None, "what a decode works on is left alone"

    def _decode(self, batch: Batch) -> Floats:
        assert not self.closed, "nothing is decoded after the end"
        assert 0 < len(batch) <= self.n_batch
        assert list(batch.slots) == sorted(batch.slots), "slots ascend"
        if self._step_s:
            time.sleep(self._step_s)
        self.batches.append(batch)
        if code := self._faults(batch):
            if code != NO_PLACE:
                # What was computed before the fault is there.
                for token, slot in list(zip(batch.tokens, batch.slots, strict=True))[::2]:
                    self._append(int(slot), int(token))
            raise DecodeFailed(code, "a fault for the test")
        if self.unified and len(batch) + self.n_used > self.n_cells:
            raise DecodeFailed(NO_PLACE, "the pool is full")
        self._copying.clear()
        rows = []
        for token, position, slot, output in zip(
            batch.tokens, batch.positions, batch.slots, batch.outputs, strict=True
        ):
            held = self.slots[slot]
            assert position == len(held), f"slot {slot} holds {len(held)}, not {position}"
            assert len(held) < self.info.n_ctx, "the context is full"
            assert 0 <= token < self.info.n_vocab
            self._append(int(slot), int(token))
            if output:
                row = np.zeros(self.info.n_vocab, np.float32)
                if self._next_token is not None:  # else all are alike
                    row[self._next_token(held)] = 10
                rows.append(row)
        return np.stack(rows) if rows else np.empty((0, self.info.n_vocab), np.float32)

    @property
    def n_used(self) -> int:
        """Cells in use, shared ones once."""
        return len({id(cell) for cells in self._cells for cell in cells})

    def _append(self, slot: int, token: int) -> None:
        self.slots[slot].append(token)
        self._cells[slot].append(object())

    def copy(self, source: int, target: int) -> None:
        self._check_rests()
        assert source != target
        if self.unified and self._windowed:
            self.truncate(target, 0)
            tokens = list(self.slots[source])
            if len(tokens) + self.n_used <= self.n_cells:
                for token in tokens:
                    self._append(target, token)
                self._n_whole[target] = len(tokens)
            return
        self.slots[target] = list(self.slots[source])
        self._n_whole[target] = self._n_whole[source]
        if self.unified:
            self._cells[target] = list(self._cells[source])
        else:
            self._cells[target] = [object() for _ in self.slots[target]]
            self._copying |= {source, target}

    def truncate(self, slot: int, n_keep: int) -> bool:
        self._check_rests()
        held = self.slots[slot]
        n_dropped = len(held) - n_keep
        kept = 0 <= n_dropped <= self.n_drop_max and n_keep >= self._n_whole[slot]
        kept = kept or n_keep == 0
        if not kept or n_keep == 0:
            self._n_whole[slot] = 0
        self.slots[slot] = held[:n_keep] if kept else []
        self._cells[slot] = self._cells[slot][:n_keep] if kept else []
        return kept

    def save(self, slot: int) -> State | None:
        self._check_rests()
        if slot in self._copying:
            return None
        if self._state_faults():
            self._n_refused += 1
            if self._n_refused % 2:
                raise MemoryError
            return None
        return np.array(self.slots[slot], np.int32).view(np.uint8)

    def load(self, slot: int, state: State) -> bool:
        self._check_rests()
        if slot in self._copying:
            self.truncate(slot, 0)
            return False
        tokens = [int(token) for token in state.view(np.int32)]
        assert len(tokens) <= self.info.n_ctx, "a longer state never gets here"
        self.truncate(slot, 0)
        if self._state_faults():
            return False
        if self.unified and len(tokens) + self.n_used > self.n_cells:
            return False
        for token in tokens:
            self._append(slot, token)
        self._n_whole[slot] = len(tokens) if self._windowed else 0
        return True

    def draw(self, sampling: SamplingParams, seed: int, prompt: Sequence[int]) -> Draw:
        self.sampled.append(sampling)
        return FakeDraw(seed if sampling.seed is not None else 0)

    def open_embedding(self) -> FakeEmbedding:
        return FakeEmbedding(self.info.n_embd, self.n_batch, self._whole_inputs, self.info.can_rank)

    def close(self) -> None:
        self.closed = True

    def reopen(self) -> None:
        """As after a restart."""
        self.closed = False
        self._started = None
        self._copying.clear()
        for slot in range(self.n_slots):
            self.truncate(slot, 0)
