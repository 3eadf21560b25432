"""The bodies of POST /tokenize and /detokenize. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openai_local.api.types.common import Body


class TokenizeRequest(Body):
    """As llama-server has it: a list holds texts and token ids, in any order."""

    content: str | Annotated[list[str | int], Field(fail_fast=True)]
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    model: str | None = None


class DetokenizeRequest(Body):
    tokens: Annotated[list[int], Field(fail_fast=True)]
    model: str | None = None
