"""Closed-loop clients for an OpenAI-compatible server. Starts no server and prints nothing.

The clients share the machine with the servers they measure, so they do as little as they can while
the clock runs: plain asyncio streams, one connection per request, and each SSE line kept with its
arrival time. The JSON in the lines is read when the round is over.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

READ_BYTES = 65536

WORDS = """
    acorn anchor apple arrow autumn badge basket beach bell bird blanket boat bottle branch bread
    bridge brush bucket butter button cabin candle canyon captain carpet castle cave cellar chain
    chair cherry circle clock cloud coast coffee copper corner cotton cradle crown curtain desert
    diamond dinner doctor dragon drum eagle engine evening farmer feather fence field finger fire
    flag forest fountain garden gate giant glass glove grain guitar hammer harbor harvest helmet
    honey horse hotel island jacket journey jungle kettle kitchen ladder lake lantern leather
    letter library lion market meadow mirror monkey morning mountain museum needle ocean office
    orange orchard painter palace paper pencil pepper piano pilot planet pocket prince rabbit
    railway ribbon river rocket sailor salt school shadow shelter silver soldier spring square
    stable station stone storm street summer sword table temple thunder ticket tiger tower train
    tunnel valley village violin wagon water weather whistle window winter wolf wood yard
""".split()


# What llama.cpp's servers take beyond OpenAI's parameters; of the samplers llama-server's defaults.
# All servers draw from the same candidates, and a small model stays away from tokens that make no
# words, which would be other tokens when the text comes back in the next turn.
EXTRAS = {"ignore_eos": True, "top_k": 40, "min_p": 0.05}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server's routes start: `http://host:port/v1`."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"not an http:// address: {url}")
        return cls(parts.hostname, parts.port or 80, parts.path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class Shape:
    """What every request of a run has in common."""

    max_tokens: int = 64
    extras: bool = True
    timeout_s: float = 600.0
    spread: float = 0.0

    def length(self, seed: int) -> int:
        """The `max_tokens` of one request: uniform within `spread`, a share, of the middle."""
        low, high = self.max_tokens * (1 - self.spread), self.max_tokens * (1 + self.spread)
        return round(random.Random(seed).uniform(low, high))


@dataclass(frozen=True, slots=True)
class Transcript:
    """One streamed answer as it came in: the start, and each SSE datum with its arrival time."""

    start_s: float
    data: list[tuple[float, bytes]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request's figures. With an `error` the others are zero and count for nothing."""

    ttft_s: float = 0.0
    gaps_s: tuple[float, ...] = ()
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """What one server did with one set of prompts."""

    server: str
    concurrency: int
    index: int
    wall_s: float
    client_cpu_s: float
    samples: list[Sample]

    @property
    def answered(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.error is None]

    @property
    def errors(self) -> list[str]:
        return [sample.error for sample in self.samples if sample.error is not None]

    @property
    def output_tokens_per_s(self) -> float:
        return sum(sample.n_output_tokens for sample in self.samples) / self.wall_s


class HTTPFailure(Exception):
    """A status other than 200: `status` and the answer's `body`."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:300].decode(errors='replace')}")
        self.status = status


class StreamFailure(Exception):
    """A stream that began well and then carried an error, or ended without its usage."""


@dataclass(slots=True)
class LineSplitter:
    """Bytes in pieces of any size to whole lines."""

    rest: bytes = field(default=b"", init=False)

    def feed(self, piece: bytes) -> list[bytes]:
        *lines, self.rest = (self.rest + piece).split(b"\n")
        return lines


def prompts(count: int, n_words: int, seed: str) -> list[str]:
    """`count` prompts that begin with random words, so that no two share a prefix worth caching."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(WORDS, k=n_words)) + "\nTell a long story with all of these words."
        for _ in range(count)
    ]


async def get_json(endpoint: Endpoint, route: str) -> Any:
    """The JSON at `route`. Raises HTTPFailure, or an OSError when nobody listens."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        writer.write(_request_head(endpoint, "GET", route) + b"\r\n")
        return json.loads(await _whole_body(reader))
    finally:
        writer.close()


async def chat(
    endpoint: Endpoint, body: dict[str, Any], route: str = "/chat/completions"
) -> Transcript:
    """Streams one completion. Raises HTTPFailure, or an OSError or EOFError when cut off."""
    payload = json.dumps(body).encode()
    start_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        head = _request_head(endpoint, "POST", route)
        length = f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head + length.encode() + payload)
        status, headers = await _response_head(reader)
        if status != 200:
            raise HTTPFailure(status, b"".join([piece async for piece in _pieces(reader, headers)]))
        data: list[tuple[float, bytes]] = []
        lines = LineSplitter()
        async for piece in _pieces(reader, headers):
            now = time.perf_counter()
            data += [(now, line[5:]) for line in lines.feed(piece) if line.startswith(b"data:")]
        return Transcript(start_s, data)
    finally:
        writer.close()


def chat_body(model: str, prompt: str, seed: int, shape: Shape) -> dict[str, Any]:
    """The request for one prompt: streamed, with usage, of a fixed length where that is allowed."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": shape.length(seed),
        "temperature": 0.8,
        "top_p": 0.95,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body | EXTRAS if shape.extras else body


def read_transcript(transcript: Transcript) -> Sample:
    """Times from the chunks with text, counts from `usage`. Raises StreamFailure."""
    times: list[float] = []
    usage: dict[str, Any] | None = None
    for time_s, datum in transcript.data:
        if datum.strip() == b"[DONE]":
            continue
        chunk = json.loads(datum)
        if "error" in chunk:
            raise StreamFailure(f"error in the stream: {chunk['error']}")
        usage = chunk.get("usage") or usage
        if _has_text(chunk):
            times.append(time_s)
    if usage is None or not times:
        raise StreamFailure("the stream ended without text or without usage")
    details = usage.get("prompt_tokens_details") or {}
    return Sample(
        ttft_s=times[0] - transcript.start_s,
        gaps_s=tuple(after - before for before, after in zip(times, times[1:], strict=False)),
        n_prompt_tokens=usage["prompt_tokens"],
        n_cached_tokens=details.get("cached_tokens") or 0,
        n_output_tokens=usage["completion_tokens"],
    )


async def drive(
    endpoint: Endpoint,
    bodies: Sequence[dict[str, Any]],
    concurrency: int,
    timeout_s: float,
    *,
    server: str,
    index: int,
) -> Round:
    """Sends `bodies` with `concurrency` clients, each asking again as soon as it is answered."""
    answers: list[Transcript | Exception] = []

    async def client(own: Sequence[dict[str, Any]]) -> None:
        for body in own:
            try:
                answers.append(await asyncio.wait_for(chat(endpoint, body), timeout_s))
            # Whatever a server under load does wrong is a result, not the end of the run.
            except Exception as error:
                answers.append(error)

    cpu_s, start_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*(client(bodies[i::concurrency]) for i in range(concurrency)))
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    samples = [_sample(answer) for answer in answers]
    return Round(server, concurrency, index, wall_s, cpu_s, samples)


def _sample(answer: Transcript | Exception) -> Sample:
    if isinstance(answer, Exception):
        return Sample(error=f"{type(answer).__name__}: {answer}")
    try:
        return read_transcript(answer)
    except (StreamFailure, ValueError) as error:
        return Sample(error=str(error))


def _has_text(chunk: dict[str, Any]) -> bool:
    choices = chunk.get("choices") or []
    delta = (choices[0].get("delta") or {}) if choices else {}
    # A reasoning model's first token is in another field, and is still its first token.
    return bool(delta.get("content") or delta.get("reasoning_content"))


def _request_head(endpoint: Endpoint, method: str, route: str) -> bytes:
    return (
        f"{method} {endpoint.path}{route} HTTP/1.1\r\n"
        f"Host: {endpoint.host}:{endpoint.port}\r\n"
        "Authorization: Bearer none\r\n"
        "Connection: close\r\n"
    ).encode()


async def _response_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in fields}


async def _whole_body(reader: asyncio.StreamReader) -> bytes:
    status, headers = await _response_head(reader)
    body = b"".join([piece async for piece in _pieces(reader, headers)])
    if status != 200:
        raise HTTPFailure(status, body)
    return body


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body as it arrives, in the three framings of HTTP/1.1 (RFC 9112, section 6)."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(READ_BYTES):
            yield piece
