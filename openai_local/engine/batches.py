"""Sequences and their tokens as the arrays of a decode. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from openai_local.engine.backend import Batch
from openai_local.engine.scheduler import Chunk
from openai_local.engine.sequence import Sequence

# What an idle slot computes so that there is no gap; dropped at once.
FILLER_TOKEN = 0


def decode_batch(
    decoding: Seq[Sequence], n_tokens: Seq[int], fillers: Iterable[tuple[int, int]]
) -> Batch:
    """So many tokens of each sequence, whose last one has an output; ``fillers`` are idle slots
    and the tokens that each holds."""
    entries = [
        (s.slot, at, s.tokens[at], at == len(s.tokens) - 1 or s.reads_prompt)
        for s, n in zip(decoding, n_tokens, strict=True)
        for at in range(s.n_computed, s.n_computed + n)
    ]
    entries += [(slot, n_held, FILLER_TOKEN, False) for slot, n_held in fillers]
    entries.sort()
    slots, positions, tokens, outputs = zip(*entries, strict=True)
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        slots=np.array(slots, np.int32),
        outputs=np.array(outputs, np.int8),
    )


def prompt_batch(chunks: Seq[Chunk]) -> Batch:
    """The tokens of the chunks, which are in slot order; the last of a prompt has an output,
    and all of one whose logprobs are wanted."""
    n = sum(chunk.n_tokens for chunk in chunks)
    batch = Batch(
        tokens=np.empty(n, np.int32),
        positions=np.empty(n, np.int32),
        slots=np.empty(n, np.int32),
        outputs=np.zeros(n, np.int8),
    )
    at = 0
    for chunk in chunks:
        sequence, start, end = chunk.sequence, chunk.sequence.n_computed, at + chunk.n_tokens
        batch.tokens[at:end] = sequence.tokens[start : start + chunk.n_tokens]
        batch.positions[at:end] = np.arange(start, start + chunk.n_tokens)
        batch.slots[at:end] = sequence.slot
        batch.outputs[end - 1] = chunk.n_tokens == sequence.n_to_compute
        if sequence.reads_prompt:
            batch.outputs[at:end] = 1
        at = end
    return batch
