"""How a host tests such views: with a model that says what it is told to, without weights.

pip install pytest httpx; then: pytest examples/test_fastapi_chat.py
"""

import pytest
from fastapi.testclient import TestClient

from examples.fastapi_chat import app, local
from openai_local.testing import FakeModel, Reply


@pytest.fixture
def host(openai_local_model: FakeModel):
    with openai_local_model.serving(local), TestClient(app) as client:
        yield client


def test_the_summary_is_the_models_answer(host: TestClient, openai_local_model: FakeModel) -> None:
    openai_local_model.script = "It is short."
    assert host.get("/summary?text=long").json() == {"summary": "It is short."}
    assert openai_local_model.requests[0].last == "Say in one sentence: long"


def test_a_story_is_streamed(host: TestClient, openai_local_model: FakeModel) -> None:
    openai_local_model.script = ["Once upon a time."]
    assert host.get("/story?about=mice").text == "Once upon a time."


def test_a_busy_model_is_an_error_of_the_host(openai_local_model: FakeModel) -> None:
    openai_local_model.script = Reply(fails=503)
    with openai_local_model.serving(local):
        with TestClient(app, raise_server_exceptions=False) as client:
            assert client.get("/summary?text=long").status_code == 500
