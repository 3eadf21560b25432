"""Where we are mounted: servers and hosts say it in several ways, here it becomes one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from starlette.types import Scope

SLASHES = re.compile("//+")


def mounted(scope: Scope) -> Scope:
    """A copy in which ``root_path`` is the prefix that clients see, and ``path`` begins with it."""
    root, inner = _root_path(scope), inner_path(scope).rstrip("/")
    asked = _asked(scope).rstrip("/")
    # Litestar cuts its prefix off the path and does not say so.
    if asked.endswith(root + inner):
        root = asked.removesuffix(inner)
    root = SLASHES.sub("/", root)  # a proxy's that ends in one, before the mount's
    return {**scope, "root_path": root, "path": (root + inner) or "/"}


def below(scope: Scope, prefix: str) -> Scope | None:
    """The scope of what is mounted at ``prefix`` in the application; None for other paths."""
    inner = inner_path(scope)
    if inner != prefix and not inner.startswith(prefix + "/"):
        return None
    root = _root_path(scope)
    return {**scope, "root_path": root + prefix, "path": root + inner}


def inner_path(scope: Scope) -> str:
    """The path as the application's own routes have it."""
    told, root, path = scope.get("root_path") or "", _root_path(scope), str(scope["path"])
    if _asked(scope) == root + path:
        return path  # the host has cut it
    for prefix in _ends(root):
        if path == prefix or path.startswith(prefix + "/"):
            inner = path[len(prefix) :]
            # As uvicorn has it, the root path with its last slash before a path with its first.
            return inner[1:] if told.endswith("/") and inner.startswith("//") else inner
    return path


def _ends(root: str) -> Iterator[str]:
    """All of it, then what is left if a proxy's part is not in the path, as under daphne."""
    for i, letter in enumerate(root):
        if letter == "/":
            yield root[i:]


def _root_path(scope: Scope) -> str:
    return str(scope.get("root_path") or "").rstrip("/")


def _asked(scope: Scope) -> str:
    """The path of the request's first line; empty where the server does not tell it."""
    raw: bytes = scope.get("raw_path") or b""
    return unquote(raw.partition(b"?")[0].decode("latin-1"))
