"""Texts to unit vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openai_local.api.bodies import Refused
from openai_local.api.errors import RequestError
from openai_local.api.generation import off_loop, tokenize_all
from openai_local.api.types.embeddings import EmbeddingRequest
from openai_local.engine.backend import Floats
from openai_local.models.session import Session

# The specification's bound on all inputs of a request together.
MAX_TOKENS = 300_000

REFUSED: Refused = {}


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors of ``n_tokens`` tokens, shape (n_inputs, n_dimensions), by ``model``."""

    model: str
    rows: Floats
    n_tokens: int


async def embed(models: Session, body: EmbeddingRequest) -> Vectors:
    """Raises RequestError, and what Session.get and Engine.embed raise."""
    model = await models.get(body.model, "embedding")
    engine, n_embd = model.engine, model.info.n_embd
    if body.dimensions is not None and body.dimensions > n_embd:
        raise RequestError(
            f"The model has {n_embd} dimensions, fewer than {body.dimensions}.",
            param="dimensions",
            code="invalid_value",
        )
    inputs = await tokenize_all(engine, body.input, parse_special=False)
    n_tokens = sum(map(len, inputs))
    if n_tokens > MAX_TOKENS:
        raise RequestError(
            f"The inputs have {n_tokens} tokens in all; at most {MAX_TOKENS} fit one request.",
            param="input",
            code="invalid_value",
        )
    rows = await engine.embed(inputs)
    if body.dimensions is not None and body.dimensions < n_embd:
        n = body.dimensions
        rows = await off_loop(rows.size, lambda: _shortened(rows, n))
    return Vectors(model.id, rows, n_tokens)


def _shortened(rows: Floats, n: int) -> Floats:
    rows = rows[:, :n]
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), np.float32)
