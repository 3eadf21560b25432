"""uvicorn with our settings: listens before a model is loaded, and says how to reach it."""

from __future__ import annotations

import copy
import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn
import uvicorn.config
from starlette.types import Message, Receive, Scope, Send

from openai_local.application import Application
from openai_local.cli.failures import FAILED, INTERRUPTED, CommandFailed


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
        **options,
    )
    # A port in use is told now, not after minutes of loading.
    listener = None if uds else _bind(host, port)
    server = _Server(config, welcome)
    try:
        server.run([listener] if listener else None)
    except KeyboardInterrupt:  # uvicorn raises it again once everything has ended
        return 0 if server.was_started else INTERRUPTED
    except SystemExit:
        if started.failure is None:
            raise
    finally:
        if listener:
            listener.close()
    if started.failure is not None:
        raise CommandFailed(started.failure)
    return 0 if server.was_started else FAILED


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
    return record.getMessage() != "Application startup failed. Exiting."


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, welcome: Callable[[str], None]) -> None:
        super().__init__(config)
        self._welcome = welcome
        self.was_started = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.was_started = True
            self._welcome(self._url())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # Here, since after a SIGTERM nothing of ours is run any more.
        if self.config.uds:
            with suppress(OSError):
                os.unlink(self.config.uds)

    def _url(self) -> str:
        config = self.config
        if config.uds:
            return f"unix:{config.uds}"
        host = config.host
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        elif ":" in host:
            host = f"[{host}]"
        port = self.servers[0].sockets[0].getsockname()[1]
        return f"http{'s' if config.is_ssl else ''}://{host}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name != "nt":  # there it would share the port with others
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.set_inheritable(True)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = str(error)
        if isinstance(error, OSError):
            reason = (error.strerror or reason).lower()
            if error.errno == errno.EADDRINUSE:
                reason += "; choose another with --port, or 0 for any that is free"
        raise CommandFailed(f"cannot listen on {host}:{port}: {reason}") from None
    return listener


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
