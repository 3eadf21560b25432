"""Our own OpenAPI document against the server that serves it: cases that schemathesis makes of it.

CONFORMANCE_EXAMPLES says how many an operation and mode; by default few enough for every run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import schemathesis
from clients import MODEL
from fakes import EOG, FakeBackend, fake_app, letters
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

PATH = "/openapi.json"
N_EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "60"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

OPENAI = ("/chat/completions", "/completions", "/embeddings", "/models")
NEEDED = {"model", "messages", "prompt", "input", "query", "documents"}
# Of what a case without options is made, so that some are always right.
RIGHT = {
    "messages": [{"role": "user", "content": "hello"}],
    "prompt": "hello",
    "input": "hello",
}

# No shrinking: whoever looks into a failure asks for that by hypothesis' own option.
cases = settings(
    max_examples=N_EXAMPLES,
    # The same cases in every run; other ones for whoever asks for more.
    derandomize="CONFORMANCE_EXAMPLES" not in os.environ,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def short(tokens: Sequence[int]) -> int:
    return letters(tokens) if len(tokens) % 16 else EOG


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    """The document of a fake application that ends soon, since some cases ask for a great deal."""
    app = fake_app(FakeBackend(n_ctx=1024, n_slots=8, next_token=short))
    yield schemathesis.openapi.from_asgi(PATH, app)
    shutdown_lifespans()


def operations(schema: Any) -> list[Any]:
    found = [result.ok() for result in schema.get_all_operations()]
    assert found, "the document has operations"
    return found


def test_what_the_document_allows_is_answered_as_it_says(schema: Any) -> None:
    for operation in operations(schema):
        # A right type is not always a right request, so a refusal may be an answer.
        statuses = run(operation, GenerationMode.POSITIVE, CHECKS)
        if operation.path.removeprefix("/v1") in OPENAI:
            assert 200 in statuses, f"{operation.path}: {statuses}"


def test_what_the_document_does_not_allow_is_refused(schema: Any) -> None:
    for operation in operations(schema):
        if operation.method.upper() == "POST":
            run(operation, GenerationMode.NEGATIVE, [*CHECKS, negative_data_rejection])


def run(operation: Any, mode: GenerationMode, checks: list[Any]) -> Counter[int]:
    """How often each status was the answer."""
    statuses: Counter[int] = Counter()

    @cases
    @given(operation.as_strategy(generation_mode=mode), st.integers(-1, 3))
    def each(case: Any, n_optional: int) -> None:
        if mode.is_positive and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = MODEL  # of which the document cannot know
            # All fields at once nearly always contradict each other somewhere.
            for name in [name for name in case.body if name not in NEEDED][max(n_optional, 0) :]:
                if n_optional >= 0:
                    del case.body[name]
            if n_optional == 0:
                case.body.update({name: RIGHT[name] for name in RIGHT if name in case.body})
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=checks)

    each()
    return statuses


def test_the_document_has_openais_routes(schema: Any) -> None:
    documented = {
        (operation.method.upper(), operation.path.removeprefix("/v1").split("{")[0])
        for operation in operations(schema)
    }
    *posts, models = OPENAI
    assert documented >= {*(("POST", path) for path in posts), ("GET", models), ("GET", "/models/")}
