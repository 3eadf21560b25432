"""Constraints on the real model, and its tokenizer."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from structured import accepts, bench_schemas
from test_engine_model import read

from openai_local.engine import (
    Constraint,
    Engine,
    EngineConfig,
    GenerationRequest,
    InvalidConstraint,
    SamplingParams,
)
from openai_local.engine.constraints.compiler import Compiled

pytestmark = [pytest.mark.model, pytest.mark.anyio]

ASK = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 10},
        "date_of_birth": {"type": "string", "format": "date"},
        "married": {"type": "boolean"},
    },
    "required": ["first_name", "date_of_birth", "married"],
    "additionalProperties": False,
}
MAX_SCHEMA_BYTES = 1500
MAX_TOKENS = 64
N_SCHEMAS = 54
SECONDS = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_forced_tokens_are_those_that_the_tokenizer_makes(smollm2: Path) -> None:
    async with Engine(EngineConfig(smollm2, n_ctx=512, n_parallel=4)) as engine:
        prompt = engine.tokenize(ASK.format("Who is it? Answer as JSON."), parse_special=True)
        bound = engine.compile(Constraint("json_schema", json.dumps(PERSON)))
        assert isinstance(bound, Compiled)
        texts = set()

        async def one(seed: int) -> None:
            sampling = SamplingParams(temperature=1.5, seed=seed)
            text, end = await read(
                engine, GenerationRequest(prompt, 100, sampling, constraint=bound)
            )
            assert end.reason == "stop"
            jsonschema.validate(json.loads(text), PERSON)
            texts.add(text)
            guide = bound.guide()
            n_forced = 0
            # Along the text's own tokens, what is forced is what comes.
            tokens = engine.tokenize(text)
            at = 0
            while at < len(tokens):
                forced = guide.forced()
                assert tokens[at : at + len(forced)] == forced
                n_forced += len(forced)
                for token in forced or [tokens[at]]:
                    guide.take(token)
                at += max(1, len(forced))
            assert guide.done
            assert n_forced >= 10

        async with anyio.create_task_group() as group:
            for seed in range(12):
                group.start_soon(one, seed)
        assert len(texts) > 6
        metrics = engine.metrics()
        assert metrics.completion_tokens_forced_total >= 12 * 10


async def test_real_generations_parse_and_satisfy_the_benchmarks_schemas(smollm2: Path) -> None:
    rows = [r for r in bench_schemas() if len(json.dumps(r["schema"])) < MAX_SCHEMA_BYTES]
    if not rows:
        pytest.skip("the JSONSchemaBench sample is not here")
    ends: Counter[str] = Counter()
    started = time.monotonic()
    async with Engine(EngineConfig(smollm2, n_ctx=1024, n_parallel=32)) as engine:
        wanted: list[tuple[dict[str, Any], Compiled]] = []
        for row in rows:
            if len(wanted) == N_SCHEMAS:
                break
            try:
                bound = engine.compile(Constraint("json_schema", json.dumps(row["schema"])))
            except InvalidConstraint:
                continue
            assert isinstance(bound, Compiled)
            wanted.append((row["schema"], bound))
        places = anyio.CapacityLimiter(32)

        async def one(schema: dict[str, Any], bound: Compiled) -> None:
            async with places:
                if time.monotonic() - started > SECONDS:
                    return
                ask = ASK.format("Answer with a short example of this: " + json.dumps(schema)[:300])
                prompt = engine.tokenize(ask, parse_special=True)
                sampling = SamplingParams(temperature=0.7, seed=1)
                request = GenerationRequest(prompt, MAX_TOKENS, sampling, constraint=bound)
                text, end = await read(engine, request)
                ends[end.reason] += 1
                if end.reason == "stop":
                    value = json.loads(text)
                    jsonschema.validators.validator_for(schema)(schema).validate(value)
                    assert accepts(bound, text)
                else:
                    assert end.usage.n_completion == MAX_TOKENS

        async with anyio.create_task_group() as group:
            for schema, bound in wanted:
                group.start_soon(one, schema, bound)
    assert ends["stop"] >= 10, ends
    assert sum(ends.values()) >= 50 or time.monotonic() - started > SECONDS, ends


async def test_a_hostile_run_of_letters_is_tokenised_in_pieces(smollm2: Path) -> None:
    async with Engine(EngineConfig(smollm2, n_ctx=256, n_parallel=1)) as engine:
        bound = engine.compile(Constraint("choice", json.dumps(["x" * 100_000])))
        request = GenerationRequest(engine.tokenize("Once"), 40, constraint=bound)
        text, end = await read(engine, request)
    assert end.reason == "length"
    assert set(text) == {"x"}
