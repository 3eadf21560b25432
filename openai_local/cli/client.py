"""A small client of OpenAI's API, of any server that speaks it. Knows no terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from openai_local.cli.failures import CommandFailed

CONNECT_S = 15.0
# Ours and other servers', and llama-server's.
TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}
STRANGE = "the server's answer is not of OpenAI's shape"


class PromptTooLong(CommandFailed):
    """The server says that the context is shorter."""


class Client:
    """Raises CommandFailed for whatever goes wrong, with the server's words where it has any."""

    def __init__(
        self, url: str, api_key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            # A first token may be minutes away: the model loads, or others are served.
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """The names that the server lists."""
        data = _json(self._call("GET", "models")).get("data")
        if not isinstance(data, list):
            raise CommandFailed(f"{self._url}: {STRANGE}")
        return [text(entry.get("id")) for entry in _objects(data)]

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        return _json(self._call("POST", path, json=dict(body)))

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks as they come; closing it early tells the server that nobody waits."""
        with self._errors():
            request = self._http.build_request("POST", path, json={**body, "stream": True})
            response = self._http.send(request, stream=True)
            try:
                if response.is_error:
                    response.read()
                    raise _failure(response)
                yield from _events(response)
            finally:
                response.close()

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._errors():
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise _failure(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise CommandFailed(f"{self._url}: {reason}") from error


def choices(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a chunk. Raises CommandFailed where they are something else."""
    return _objects(chunk.get("choices") or [])


def text(value: Any) -> str:
    """``value``, none if it is null. Raises CommandFailed where it is something else."""
    if not isinstance(value, str | None):
        raise CommandFailed(STRANGE)
    return value or ""


def _objects(values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise CommandFailed(STRANGE)
    return values


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Of an event stream, each of whose events has one line of data."""
    ended = False
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            ended = True
            break
        try:
            event = json.loads(data)
        except ValueError:
            raise CommandFailed(f"the server sent no JSON: {data[:200]}") from None
        if not isinstance(event, dict):
            raise CommandFailed(f"the server sent no object: {data[:200]}")
        if event.get("error"):
            raise CommandFailed(_message(event["error"]))
        yield event
    if not ended:
        raise CommandFailed("the server ended the stream before the answer's end")


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise CommandFailed(f"{response.url} does not answer as OpenAI's API does")
    return answer


def _failure(response: httpx.Response) -> CommandFailed:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = response.text[:200]
    line = f"{response.status_code} {response.reason_phrase}: {_message(error)}"
    if isinstance(error, dict) and not TOO_LONG.isdisjoint(
        str(error.get(name)) for name in ("code", "type")
    ):
        return PromptTooLong(line)
    return CommandFailed(line)


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
