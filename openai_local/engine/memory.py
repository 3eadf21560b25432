"""How long and how many: context sizes that fit the machine. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

# Of what is free when the model loads, the KV memory takes at most this share by default.
KV_SHARE = 0.25
# The same of a GPU, whose memory is there for the model: what a step computes has to fit beside.
GPU_KV_SHARE = 0.5
# As much of what is then free holds the states of earlier prompts.
CACHE_RAM_SHARE = 1 / 16
DEFAULT_PARALLEL = 16
MIN_PARALLEL = 4
MIN_CTX = 2048
# Of a context for embeddings.
EMBEDDING_SEQS = 64
EMBEDDING_SEQS_STATEFUL = 4  # a recurrent model takes memory for the state of each
# llama.cpp keeps a row of logits, which nobody reads, for each token of a batch of embeddings: they
# take no more than this, nor than this share of what is free.
EMBEDDING_ROWS_BYTES = 128 << 20
EMBEDDING_ROWS_SHARE = 1 / 32
# Where an input is computed at once, its rows take at most this share of what is free.
INPUT_SHARE = 0.5
MIN_INPUT = 512
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """Tokens a sequence, sequences at once, and the cells of the KV memory.

    In the streams layout every sequence has cells of its own; ``unified``, they share them all.
    """

    n_ctx: int
    n_parallel: int
    n_cells: int
    unified: bool = False


@dataclass(frozen=True, slots=True)
class KvCost:
    """What the memory takes, in bytes.

    ``token`` is of a token in the layers that keep all of them, ``window_token`` in those that keep
    ``n_window``, with ``n_ubatch`` more for what is being computed; ``state`` is of a sequence in
    recurrent layers, however long it is, and 0 where there are none.
    """

    token: float
    window_token: float = 0.0
    n_window: int = 0
    n_ubatch: int = 0
    state: float = 0.0

    @property
    def has_cells(self) -> bool:
        """Whether longer sequences take more."""
        return self.token + self.window_token > 0

    @property
    def stateful(self) -> bool:
        """Whether something is of all tokens of a sequence at once."""
        return self.state > 0

    def streams(self, n_ctx: int, n_parallel: int) -> float:
        n_kept = min(n_ctx, self.n_window + self.n_ubatch)
        return n_parallel * (n_ctx * self.token + n_kept * self.window_token + self.state)

    def pool(self, n_cells: int, n_parallel: int) -> float:
        n_kept = min(n_cells, self.n_window * n_parallel + self.n_ubatch)
        return n_cells * self.token + n_kept * self.window_token + n_parallel * self.state

    def fixed(self, n_parallel: int) -> float:
        """What sequences in a pool take of their own, beyond its cells."""
        return n_parallel * (self.n_window * self.window_token + self.state)

    def total(self, plan: ContextPlan) -> float:
        if plan.unified:
            return self.pool(plan.n_cells, plan.n_parallel)
        return self.streams(plan.n_ctx, plan.n_parallel)

    def longest(self, budget_bytes: float, n_parallel: int) -> int:
        """The longest sequences of which ``n_parallel`` fit, each with cells of its own."""
        n_kept = self.n_window + self.n_ubatch
        return self._tokens_within(budget_bytes / n_parallel - self.state, n_kept)

    def largest_pool(self, budget_bytes: float, n_parallel: int) -> int:
        n_kept = self.n_window * n_parallel + self.n_ubatch
        return self._tokens_within(budget_bytes - n_parallel * self.state, n_kept)

    def _tokens_within(self, n_bytes: float, n_kept: int) -> int:
        n = n_bytes / max(self.token + self.window_token, 1)
        if n > n_kept:
            n = (n_bytes - n_kept * self.window_token) / max(self.token, 1)
        return max(0, int(n))


def plan_context(
    *,
    n_ctx_train: int,
    cost: KvCost,
    budget_bytes: int,
    n_ctx: int | None,
    n_parallel: int | None,
    unified: bool | None = None,
) -> ContextPlan:
    """What was asked for, and for the rest the most that fits the budget.

    Left to itself: the streams layout, which is faster, with the trained context and sequences
    halved from DEFAULT_PARALLEL until they fit; if MIN_PARALLEL do not, the unified layout, where
    DEFAULT_PARALLEL share what the budget gives. Where that is ruled out: a shorter context, of no
    less than MIN_CTX. Sequences of which all have one state share nothing, however many they are.
    """
    ctx = n_ctx or n_ctx_train
    parallel = n_parallel or DEFAULT_PARALLEL
    fewest = MIN_PARALLEL if cost.has_cells else 1
    while n_parallel is None and parallel > fewest and cost.streams(ctx, parallel) > budget_bytes:
        parallel //= 2
    if unified is None:
        unified = cost.streams(ctx, parallel) > budget_bytes and parallel > 1
    if unified and cost.has_cells:
        return _shared_pool(cost, budget_bytes, n_ctx_train, n_ctx, n_parallel)
    if n_ctx is None and cost.streams(ctx, parallel) > budget_bytes:
        longest = cost.longest(budget_bytes, parallel) // 256 * 256
        ctx = max(min(MIN_CTX, n_ctx_train), min(longest, n_ctx_train))
    return ContextPlan(ctx, parallel, ctx * parallel)


def _shared_pool(
    cost: KvCost, budget_bytes: int, n_ctx_train: int, n_ctx: int | None, n_parallel: int | None
) -> ContextPlan:
    parallel = n_parallel or DEFAULT_PARALLEL
    # States and windows are of each sequence: at least half of the budget is for what is shared.
    while n_parallel is None and parallel > 1 and 2 * cost.fixed(parallel) > budget_bytes:
        parallel //= 2
    shortest = min(MIN_CTX, n_ctx_train) if n_ctx is None else n_ctx
    n_cells = max(cost.largest_pool(budget_bytes, parallel) // 256 * 256, shortest)
    ctx = min(n_ctx_train, n_cells) if n_ctx is None else n_ctx
    return ContextPlan(ctx, parallel, min(n_cells, ctx * parallel), unified=True)


def kv_budget(*, ram: float, gpu: float, on_gpu: float) -> int:
    """The most bytes that keys and values take by default, where those of the share ``on_gpu`` of
    the layers are on GPUs. ``ram`` and ``gpu``: bytes that are free beside the weights."""
    bounds = []
    if on_gpu < 1:
        bounds.append(ram * KV_SHARE / (1 - on_gpu))
    if on_gpu > 0:
        bounds.append(gpu * GPU_KV_SHARE / on_gpu)
    return int(min(bounds))


def embedding_batch(
    *, whole: bool, n_ctx: int, n_ubatch: int, n_vocab: int, n_seq: int, free_bytes: int
) -> int:
    """Tokens that a context for embeddings computes at once. ``whole``: never less than an input.

    llama.cpp reserves as many for each sequence, and asserts that they are a batch.
    """
    if whole:
        return -(-max(n_ubatch, n_ctx) // n_seq) * n_seq
    n_bytes = min(EMBEDDING_ROWS_BYTES, int(free_bytes * EMBEDDING_ROWS_SHARE))
    n = min(n_ubatch, n_bytes // (_FLOAT * max(n_vocab, 1)))
    return max(n // n_seq, 1) * n_seq


def longest_input(*, n_ctx_train: int, n_vocab: int, n_embd: int, free_bytes: int) -> int:
    """The longest input whose rows may be had, where it is computed at once."""
    n = int(free_bytes * INPUT_SHARE) // (_FLOAT * (n_vocab + n_embd))
    return min(n_ctx_train, max(n // EMBEDDING_SEQS * EMBEDDING_SEQS, MIN_INPUT))
