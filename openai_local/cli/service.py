"""Where a command's requests go: a server at a URL, or a model loaded in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import typer

from openai_local.application import Application
from openai_local.cli.client import Client
from openai_local.cli.failures import USAGE, CommandFailed
from openai_local.cli.options import flag
from openai_local.cli.screen import err
from openai_local.cli.signals import end_at_once
from openai_local.config import Settings, Use, load_settings
from openai_local.inprocess.portal import Portal
from openai_local.inprocess.transports import sync_transport
from openai_local.models import registry
from openai_local.models.errors import UnknownModel
from openai_local.models.lease import Lease
from openai_local.models.state import ModelState

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
    portal = Portal("openai_local command line")
    with ExitStack() as stack:
        stack.enter_context(_warnings())
        stack.callback(portal.close)
        application, name = _application(given, embeds, portal)
        transport = sync_transport(httpx, application, portal, application.aclose)
        client = Client(IN_PROCESS, transport=transport)
        stack.callback(client.close)
        use: Use = "embedding" if embeds else "chat"
        try:
            stack.callback(_load(application, name, use, portal).release)
            yield Service(client, name)
        except KeyboardInterrupt:
            end_at_once()  # what is freed now may take a while
            raise


@contextmanager
def _warnings() -> Iterator[None]:
    """Those of ours on standard error, and nothing else. That a load failed, we say ourselves."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: record.name != registry.__name__)
    logger = logging.getLogger("openai_local")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _load(application: Application, name: str, use: Use, portal: Portal) -> Lease:
    """The model, once it is there; on a terminal with how far it is."""

    async def look() -> ModelState:
        return application.registry.state(name)

    # An interrupt of this thread must find it in no import and no lock that the loop's may want:
    # so this imports what it needs first, and looks by the loop's.
    with err().status("") as status:
        lease = portal.submit(lambda: application.registry.acquire(name, use))
        while not lease.done():
            state = portal.call(look)
            share = f" {100 * state.progress:.0f} %" if state.progress else ""
            status.update(f"{name}: {state.value}{share}")
            wait([lease], timeout=PROGRESS_S)
    return lease.result()


def _application(given: Mapping[str, Any], embeds: bool, portal: Portal) -> tuple[Application, str]:
    """For the model that was named: one of those in the settings, or else a file."""
    settings = _alone(load_settings(**given))
    word = given.get("model")
    if word is not None:
        known = Application(_alone(load_settings(**{k: given[k] for k in given if k != "model"})))
        with suppress(UnknownModel):
            return known, portal.call(lambda: known.registry.find(word)).id
        alone = dict.fromkeys(("model_id", "embedding_model", "default_model", "models_dir"))
        settings = settings.model_copy(update={**alone, "models": {}})
    application = Application(settings)
    known_ids = application.registry
    return application, known_ids.embedding_id if embeds else known_ids.default_id


def _alone(settings: Settings) -> Settings:
    """For one user, who needs no key, and one conversation, whose context is no sixteenth."""
    changes: dict[str, Any] = {"api_key": None}
    if "n_parallel" not in settings.model_fields_set:
        changes["n_parallel"] = 1
    return settings.model_copy(update=changes)
