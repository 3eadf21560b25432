"""Where a command's requests go: a server at a URL, or a model loaded in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from anyio.from_thread import BlockingPortal, start_blocking_portal

from openai_local.application import Application
from openai_local.cli.client import Client
from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.in_process import InProcessTransport
from openai_local.cli.options import flag
from openai_local.cli.screen import err
from openai_local.config import Settings, Use, load_settings
from openai_local.models.errors import UnknownModel
from openai_local.models.registry import Lease

PROGRESS_S = 0.2
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
    with start_blocking_portal() as portal, ExitStack() as stack:
        application, name = _application(given, embeds, portal)
        stack.callback(portal.call, application.aclose)
        use: Use = "embedding" if embeds else "chat"
        lease = portal.start_task_soon(application.registry.acquire, name, use)
        _show_progress(application, name, lease)
        stack.callback(lease.result().release)
        client = Client(IN_PROCESS, transport=InProcessTransport(application, portal))
        stack.callback(client.close)
        yield Service(client, name)


def _show_progress(application: Application, name: str, lease: Future[Lease]) -> None:
    """On a terminal, until the model is there or cannot be had."""
    with err().status("") as status:
        while not lease.done():
            state = application.registry.state(name)
            share = f" {100 * state.progress:.0f} %" if state.progress else ""
            status.update(f"{name}: {state.value}{share}")
            wait([lease], timeout=PROGRESS_S)


def _application(
    given: Mapping[str, Any], embeds: bool, portal: BlockingPortal
) -> tuple[Application, str]:
    """For the model that was named: one of those in the settings, or else a file."""
    settings = _alone(load_settings(**given))
    word = given.get("model")
    if word is not None:
        known = Application(_alone(load_settings(**{k: given[k] for k in given if k != "model"})))
        with suppress(UnknownModel):
            return known, portal.call(known.registry.find, word).id
        alone = dict.fromkeys(("model_id", "embedding_model", "default_model", "models_dir"))
        settings = settings.model_copy(update={**alone, "models": {}})
    application = Application(settings)
    registry = application.registry
    return application, registry.embedding_id if embeds else registry.default_id


def _alone(settings: Settings) -> Settings:
    """For one user, who needs no key, and one conversation, whose context is no sixteenth."""
    changes: dict[str, Any] = {"api_key": None}
    if "n_parallel" not in settings.model_fields_set:
        changes["n_parallel"] = 1
    return settings.model_copy(update=changes)
