"""Transports for httpx and httpx2 that call an ASGI application in this process, and stream.

The module is the caller's, and imported by nobody here: OpenAI's client uses the one or the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import ModuleType
from typing import Any

from starlette.types import ASGIApp, Scope

from openai_local.inprocess.exchange import Broken, Exchange, Head
from openai_local.inprocess.portal import ItemIterator, Portal

# What a transport of our own gets to do at its end.
Close = Callable[[], Awaitable[None]]


def async_transport(http: ModuleType, app: ASGIApp, close: Close) -> Any:
    """An ``http.AsyncBaseTransport``."""
    tasks: set[Any] = set()

    class Body(http.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, exchange: Exchange, request: Any) -> None:
            self._exchange, self._request = exchange, request

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            try:
                return await self._exchange.__anext__()
            except (TimeoutError, Broken) as error:
                raise _translated(error, http, self._request) from error

        async def aclose(self) -> None:
            self._exchange.leave()

    class Transport(http.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            exchange = Exchange(_timeout_s(request))
            try:
                head = await exchange.begin(app, _scope(request), await request.aread(), tasks)
            except TimeoutError as error:
                raise _translated(error, http, request) from error
            return http.Response(
                head.status, headers=list(head.headers), stream=Body(exchange, request)
            )

        async def aclose(self) -> None:
            await close()

    return Transport()


def sync_transport(http: ModuleType, app: ASGIApp, portal: Portal, close: Close) -> Any:
    """An ``http.BaseTransport`` that runs ``app`` in the loop of ``portal``, and closes that."""
    tasks: set[Any] = set()

    class Body(http.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, pieces: ItemIterator[bytes], request: Any) -> None:
            self._pieces, self._request = pieces, request

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._pieces
            except (TimeoutError, Broken) as error:
                raise _translated(error, http, self._request) from error

        def close(self) -> None:
            self._pieces.close()

    class Transport(http.BaseTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            scope, body, timeout_s = _scope(request), request.read(), _timeout_s(request)

            async def begin() -> tuple[Head, Exchange]:
                exchange = Exchange(timeout_s)
                return await exchange.begin(app, scope, body, tasks), exchange

            try:
                head, exchange = portal.call(begin)
            except TimeoutError as error:
                raise _translated(error, http, request) from error
            stream = Body(portal.iterate(exchange), request)
            return http.Response(head.status, headers=list(head.headers), stream=stream)

        def close(self) -> None:
            portal.call(lambda: _run(close))
            portal.close()

    return Transport()


async def _run(close: Close) -> None:
    await close()


def _scope(request: Any) -> Scope:
    url = request.url
    path, _, query = url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 0),
        "server": (url.host, url.port or 80),
    }


def _timeout_s(request: Any) -> float | None:
    """The client's bound on the time between two pieces."""
    timeout_s: float | None = request.extensions.get("timeout", {}).get("read")
    return timeout_s


def _translated(error: Exception, http: ModuleType, request: Any) -> Exception:
    if isinstance(error, Broken):
        broken: Exception = http.ReadError(str(error), request=request)
        return broken
    late: Exception = http.ReadTimeout("the application took too long", request=request)
    return late
