"""Hides how long a stream's pieces are from who sees the encrypted traffic."""

from __future__ import annotations

import secrets
from typing import Any

from pydantic_core import to_json

# Of the chunk as JSON, which is what is sent.
BLOCK_BYTES = 64


def obfuscate(chunk: dict[str, Any]) -> None:
    """Give ``chunk`` an ``obfuscation`` of random letters, as OpenAI does, that makes its length
    a multiple of a block."""
    chunk["obfuscation"] = ""
    n_missing = -len(to_json(chunk)) % BLOCK_BYTES
    chunk["obfuscation"] = secrets.token_urlsafe(BLOCK_BYTES)[:n_missing]
