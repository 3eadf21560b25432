"""Texts to tokens and back, as llama-server has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_local.api.bodies import Refused
from openai_local.api.generation import off_loop
from openai_local.api.prompts import text_of
from openai_local.api.types.tokens import DetokenizeRequest, TokenizeRequest
from openai_local.engine import Engine
from openai_local.engine.backend import Vocabulary
from openai_local.models.session import Session

REFUSED: Refused = {}


async def tokenize(models: Session, body: TokenizeRequest) -> list[Any]:
    """Token ids, or objects of an id and its piece. Raises InvalidToken, and what
    Session.get raises."""
    model = await models.get(body.model or models.default_id)
    parts = [body.content] if isinstance(body.content, str) else body.content
    size = sum(len(part) if isinstance(part, str) else 1 for part in parts)
    return await off_loop(size, lambda: _tokenized(body, parts, model.engine))


async def detokenize(models: Session, body: DetokenizeRequest) -> str:
    """Raises InvalidToken, and what Session.get raises."""
    model = await models.get(body.model or models.default_id)
    model.engine.check_tokens(body.tokens)
    return await off_loop(len(body.tokens), lambda: text_of(body.tokens, model.engine.vocabulary))


def _tokenized(body: TokenizeRequest, parts: Sequence[str | int], engine: Engine) -> list[Any]:
    tokens = mixed_tokens(
        parts,
        engine,
        add_special=bool(body.add_special),
        parse_special=body.parse_special is not False,
    )
    if not body.with_pieces:
        return tokens
    vocabulary = engine.vocabulary
    return [{"id": token, "piece": _piece(token, vocabulary)} for token in tokens]


def mixed_tokens(
    parts: Sequence[str | int], engine: Engine, *, add_special: bool, parse_special: bool
) -> list[int]:
    """Token ids of texts and token ids in a row; what a text begins with is added to the first.

    Raises InvalidToken.
    """
    engine.check_tokens([part for part in parts if isinstance(part, int)])
    tokens: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, int):
            tokens.append(part)
        else:
            tokens += engine.tokenize(
                part, add_special=add_special and i == 0, parse_special=parse_special
            )
    return tokens


def _piece(token: int, vocabulary: Vocabulary) -> Any:
    """Text, or the bytes of what is not whole characters; control tokens as they are written."""
    name = vocabulary.name(token)
    if name:
        return name
    piece = vocabulary.piece(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
