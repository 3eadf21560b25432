"""What the bodies of the generating endpoints share. Types and ranges only, no behaviour."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from openai_local.api.types.common import Body
from openai_local.api.types.constraints import ConstraintBody
from openai_local.api.types.sampling import SamplingBody


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


StopString = Annotated[str, Field(min_length=1)]


class GenerationBody(SamplingBody, ConstraintBody):
    """The parameters that /chat/completions and /completions have in common.

    From ``stop_token_ids`` on they are those of llama-server and vLLM.
    """

    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[StopString], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    stop_token_ids: Annotated[list[int], Field(fail_fast=True, max_length=128)] | None = None
    n_probs: Annotated[int, Field(ge=0, le=20)] | None = None
    cache_prompt: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    t_max_predict_ms: Annotated[int, Field(ge=-1, lt=2**63)] | None = None

    def stops(self) -> tuple[str, ...]:
        if not self.stop:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def max_seconds(self) -> float | None:
        """llama-server's bound on the time that the tokens after the first one take."""
        if self.t_max_predict_ms is None or self.t_max_predict_ms <= 0:
            return None
        return self.t_max_predict_ms / 1000

    def n_logprobs(self) -> int | None:
        """How many alternatives are told of each token; None if no logprobs are."""
        return self.n_probs or None
