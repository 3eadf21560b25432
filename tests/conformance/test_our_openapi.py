"""Our own OpenAPI document against the server that serves it: cases that schemathesis makes of it.

CONFORMANCE_EXAMPLES says how many an operation and mode; by default few enough for every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fakes import FakeBackend, fake_app
from hypothesis import HealthCheck, Phase, given, settings
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

# No shrinking: whoever looks into a failure asks for that by hypothesis' own option.
cases = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    """The document of a fake application, small because some cases ask for a great deal."""
    app = fake_app(FakeBackend(n_ctx=64, n_slots=8))
    try:
        schema = schemathesis.openapi.from_asgi(PATH, app)
    except schemathesis.errors.LoaderError as error:
        pytest.skip(f"the server has no {PATH} yet: {error}")
    yield schema
    shutdown_lifespans()


def operations(schema: Any) -> list[Any]:
    found = [result.ok() for result in schema.get_all_operations()]
    assert found, "the document has operations"
    return found


def test_what_the_document_allows_is_answered_as_it_says(schema: Any) -> None:
    for operation in operations(schema):
        # A right type is not always a right request, so a refusal may be an answer.
        run(operation, GenerationMode.POSITIVE, CHECKS)


def test_what_the_document_does_not_allow_is_refused(schema: Any) -> None:
    for operation in operations(schema):
        if operation.method.upper() == "POST":
            run(operation, GenerationMode.NEGATIVE, [*CHECKS, negative_data_rejection])


def run(operation: Any, mode: Any, checks: list[Any]) -> None:
    @cases
    @given(operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        response = case.call()
        case.validate_response(response, checks=checks)

    each()


def test_the_document_has_openais_routes(schema: Any) -> None:
    documented = {
        (operation.method.upper(), operation.path.removeprefix("/v1").split("{")[0])
        for operation in operations(schema)
    }
    assert documented >= {
        ("POST", "/chat/completions"), ("POST", "/completions"), ("POST", "/embeddings"),
        ("GET", "/models"), ("GET", "/models/"),
    }  # fmt: skip
