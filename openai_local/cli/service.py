"""Where a command's requests go: a server at a URL, or a model loaded in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from anyio.from_thread import start_blocking_portal

from openai_local.application import Application
from openai_local.cli.client import Client
from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.in_process import InProcessTransport
from openai_local.cli.options import flag
from openai_local.cli.screen import err
from openai_local.config import Settings, load_settings

IN_PROCESS = "http://in-process/v1"

Url = Annotated[
    str | None,
    typer.Option(help="A server with OpenAI's API, in place of a local model.", metavar="URL"),
]
ApiKey = Annotated[
    str | None, typer.Option(help="The server's key.", envvar="OPENAI_API_KEY", metavar="TEXT")
]


@dataclass(frozen=True, slots=True)
class Service:
    """A client, and the name of the model to ask it for."""

    client: Client
    model: str


@contextmanager
def open_service(
    url: str | None, api_key: str | None, settings: Mapping[str, Any], embeds: bool = False
) -> Iterator[Service]:
    """The server at ``url``, where ``settings`` may name a model; else a model of the settings.

    A local model is loaded before this returns, and freed at the end. With ``embeds`` it is the
    one for embeddings. Raises CommandFailed, and what a load raises.
    """
    if url is None:
        with _local(settings, embeds) as service:
            yield service
        return
    strange = [flag(name) for name in settings if name != "model"]
    if strange:
        raise CommandFailed(f"{strange[0]} is of a local model, and --url names a server", USAGE)
    client = Client(_base(url), api_key)
    try:
        model = settings.get("model") or next(iter(client.models()), None)
        if model is None:
            raise CommandFailed(f"{url} lists no models; name one with --model")
        yield Service(client, str(model))
    finally:
        client.close()


def _base(url: str) -> str:
    """As OpenAI's clients take it; a bare host has its API at /v1."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CommandFailed(f"--url {url}: not an http or https URL", USAGE)
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def named_model(name: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the model that was named without an option."""
    if name is None:
        return dict(settings)
    if "model" in settings:
        raise CommandFailed(f"two models: {name} and {settings['model']}", USAGE)
    return {**settings, "model": name}


@contextmanager
def _local(given: Mapping[str, Any], embeds: bool) -> Iterator[Service]:
    # Warnings of ours go to stderr, and nothing else.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    application = Application(_alone(load_settings(**given), embeds))
    with start_blocking_portal() as portal, ExitStack() as stack:
        with err().status(f"loading {application.registry.default_id}"):
            stack.enter_context(portal.wrap_async_context_manager(application.lifespan()))
        client = Client(IN_PROCESS, transport=InProcessTransport(application, portal))
        stack.callback(client.close)
        yield Service(client, application.registry.default_id)


def _alone(settings: Settings, embeds: bool) -> Settings:
    """For one user, who needs no key, and one model."""
    changes: dict[str, Any] = {"api_key": None, "embedding_model": None}
    if embeds and settings.embedding_model is not None:
        changes |= {"model": settings.embedding_model, "model_id": settings.embedding_model_id}
    if "n_parallel" not in settings.model_fields_set:
        changes["n_parallel"] = 1  # its context is not a sixteenth of what there is
    return settings.model_copy(update=changes)
