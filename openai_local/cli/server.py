"""uvicorn with our settings: listens before a model is loaded, and says how to reach it."""

from __future__ import annotations

import asyncio
import copy
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any

import uvicorn
import uvicorn.config
from starlette.types import Message, Receive, Scope, Send

from openai_local.application import Application
from openai_local.cli.failures import FAILED, INTERRUPTED, USAGE, CommandFailed
from openai_local.cli.listener import address, forget, listen, listen_at
from openai_local.cli.signals import end_by


def run(
    application: Application,
    welcome: Callable[[str], None],
    *,
    host: str,
    port: int,
    uds: str | None,
    log_level: str,
    **options: Any,
) -> int:
    """Serve until a signal. ``welcome`` gets the URL once requests are served.

    The exit status. Raises CommandFailed where nothing can be listened on.
    """
    started = _Start(application)
    config = uvicorn.Config(
        started,
        host=host,
        port=port,
        uds=uds,
        log_level=log_level,
        log_config=_logging(log_level),
        ws="none",
        lifespan="on",
        **options,
    )
    _load(config)
    listener = listen_at(uds) if uds else listen(host, port)
    server = _Server(config, welcome)
    try:
        server.run([listener])
    except KeyboardInterrupt:  # uvicorn raises it again once everything has ended
        return 0 if server.was_started else INTERRUPTED
    except SystemExit:
        if started.failure is None:
            raise
    finally:
        listener.close()
        if uds:
            forget(uds)
    if started.failure is not None:
        raise CommandFailed(started.failure)
    return 0 if server.was_started else FAILED


def _load(config: uvicorn.Config) -> None:
    """Read the certificate, and say which one it is if it cannot be read."""
    if config.ssl_keyfile and not config.ssl_certfile:
        raise CommandFailed("--ssl-keyfile needs --ssl-certfile", USAGE)
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        files = " and ".join(str(f) for f in (config.ssl_certfile, config.ssl_keyfile) if f)
        # OpenSSL's own words tell nothing, but for a key of another certificate.
        reason = error.strerror if not isinstance(error, ssl.SSLError) else error.reason
        raise CommandFailed(f"cannot use {files}: {reason or 'this is no PEM file'}") from error


class _Start:
    """The application, of whose failure to start we speak ourselves: in one line."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self.failure: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listening_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self.failure = message["message"]
                message = {**message, "message": ""}
            await send(message)

        await self._application(
            scope, receive, listening_send if scope["type"] == "lifespan" else send
        )


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    # A second Ctrl-C cancels what runs: that is no fault of the application's.
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and record.getMessage() != "Application startup failed. Exiting."


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, welcome: Callable[[str], None]) -> None:
        super().__init__(config)
        self._welcome = welcome
        self.was_started = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:  # told to end while the model was loaded
            self.was_started = True
            self._welcome(self._url())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # a load, or what is saved at the end, is not waited for
            if self.config.uds:
                forget(self.config.uds)
            end_by(signal.SIGINT)

    def _url(self) -> str:
        config = self.config
        if config.uds:
            return f"unix:{config.uds}"
        # Of all addresses, one that a client on this machine can use.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
        port = self.servers[0].sockets[0].getsockname()[1]
        return f"http{'s' if config.is_ssl else ''}://{address(host, port)}"


def _logging(level: str) -> dict[str, Any]:
    """uvicorn's own logging, with our loggers in it."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["filters"] = {"start": {"()": lambda: _is_worth_a_line}}
    config["loggers"]["uvicorn.error"]["filters"] = ["start"]
    config["loggers"]["openai_local"] = {
        "handlers": ["default"],
        "level": "DEBUG" if level == "trace" else level.upper(),
        "propagate": False,
    }
    if level not in ("debug", "trace"):
        quieter = "WARNING" if level == "info" else level.upper()
        config["loggers"]["openai_local.llama_cpp"] = {"level": quieter}
    return config
