"""POST /tokenize and /detokenize, as llama-server has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openai_local.engine import Engine
from openai_local.engine.backend import Vocabulary
from openai_local.routes.generation import off_loop
from openai_local.routes.prompts import text_of
from openai_local.routes.request import Refused, read
from openai_local.routes.services import Services
from openai_local.routes.types.tokens import DetokenizeRequest, TokenizeRequest

REFUSED: Refused = {}


async def tokenize(services: Services, request: Request) -> ASGIApp:
    body = await read(request, TokenizeRequest, REFUSED, services.settings.max_body_bytes)
    model = await services.model(request, body.model or services.registry.default_id, None)
    parts = [body.content] if isinstance(body.content, str) else body.content
    size = sum(len(part) if isinstance(part, str) else 1 for part in parts)
    content = await off_loop(size, lambda: _tokenized(body, parts, model.engine))
    return Response(content, media_type="application/json")


async def detokenize(services: Services, request: Request) -> ASGIApp:
    body = await read(request, DetokenizeRequest, REFUSED, services.settings.max_body_bytes)
    model = await services.model(request, body.model or services.registry.default_id, None)
    model.engine.check_tokens(body.tokens)
    text = await off_loop(len(body.tokens), lambda: text_of(body.tokens, model.engine.vocabulary))
    return Response(to_json({"content": text}), media_type="application/json")


def _tokenized(body: TokenizeRequest, parts: Sequence[str | int], engine: Engine) -> bytes:
    tokens = mixed_tokens(
        parts,
        engine,
        add_special=bool(body.add_special),
        parse_special=body.parse_special is not False,
    )
    if not body.with_pieces:
        return to_json({"tokens": tokens})
    vocabulary = engine.vocabulary
    return to_json({"tokens": [{"id": t, "piece": _piece(t, vocabulary)} for t in tokens]})


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
