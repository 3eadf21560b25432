"""What ``serve`` listens on, opened before a model is loaded: what is in the way is told now, not
after minutes."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from openai_local.cli.failures import CommandFailed


def listen(host: str, port: int) -> socket.socket:
    """On an address; port 0 is any that is free. Raises CommandFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if os.name != "nt":  # there it would share the port with others
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.set_inheritable(True)
    except OSError as error:
        listener.close()
        raise CommandFailed(
            f"cannot listen on {address(host, port)}: {_reason(error, port)}"
        ) from None
    return listener


def address(host: str, port: int) -> str:
    """As in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen_at(path: str) -> socket.socket:
    """On a Unix socket, which all users may connect to. One that a process left behind is
    replaced, one that is answered is not. Raises CommandFailed."""
    if not hasattr(socket, "AF_UNIX"):
        raise CommandFailed("this system has no Unix sockets; leave out --uds")
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _is_answered(path):
            raise OSError(errno.EADDRINUSE, "another process answers there")
        if _is_socket(path):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o666)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()  # a path too long has no number
        raise CommandFailed(f"cannot listen on {path}: {reason}") from None
    return listener


def forget(path: str) -> None:
    """Remove a Unix socket that nobody listens on any more."""
    with suppress(OSError):
        os.unlink(path)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def _reason(error: OSError, port: int) -> str:
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.EADDRINUSE:
        return f"{reason}; choose another with --port, or 0 for any that is free"
    if error.errno == errno.EACCES and port < 1024:
        return f"{reason}; ports below 1024 are the system's, choose another with --port"
    return reason
