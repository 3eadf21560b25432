"""Fixtures for tests of hosts. Imports nothing but pytest before one of them is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from openai_local.application import Application
    from openai_local.testing import FakeModel


@pytest.fixture
def openai_local_model() -> Iterator[FakeModel]:
    """A model that says what its ``script`` is set to, or else what is said to it."""
    from openai_local.testing import FakeModel

    model = FakeModel()
    yield model
    model.close()


@pytest.fixture
def openai_local_app(openai_local_model: FakeModel) -> Application:
    """An application with that model."""
    return openai_local_model.app()


@pytest.fixture
def openai_local_client(openai_local_app: Application) -> Iterator[OpenAI]:
    """OpenAI's own client of that application, for code without an event loop."""
    import openai_local

    with openai_local.sync_client(openai_local_app) as client:
        yield client


@pytest.fixture
def openai_local_async_client(openai_local_app: Application) -> AsyncOpenAI:
    """OpenAI's own client of that application, for code on any event loop."""
    import openai_local

    return openai_local.client(openai_local_app)
