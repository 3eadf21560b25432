"""uvicorn with our settings: listens before a model is loaded, and says how to reach it."""

from __future__ import annotations

import copy
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
import uvicorn.config

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
    config = uvicorn.Config(
        application,
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
    finally:
        if listener:
            listener.close()
        if uds and os.path.exists(uds):
            os.unlink(uds)
    return 0 if server.was_started else FAILED


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
    config["loggers"]["openai_local"] = {
        "handlers": ["default"],
        "level": "DEBUG" if level == "trace" else level.upper(),
        "propagate": False,
    }
    if level not in ("debug", "trace"):
        quieter = "WARNING" if level == "info" else level.upper()
        config["loggers"]["openai_local.llama_cpp"] = {"level": quieter}
    return config
