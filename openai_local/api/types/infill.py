"""The body of POST /infill, as llama-server has it. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openai_local.api.types.common import Body
from openai_local.api.types.generation import GenerationBody


class ExtraFile(Body):
    text: str
    filename: str | None = None


class InfillRequest(GenerationBody):
    """What to write between ``input_prefix`` and ``input_suffix``."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[ExtraFile], Field(fail_fast=True)] | None = None
    prompt: str | None = None
    model: str | None = None
    n_predict: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = None

    def most_tokens(self) -> int | None:
        """How many may be generated; None until the context is full."""
        n = self.max_tokens if self.n_predict is None else self.n_predict
        return None if n == -1 else n
