"""A chat: its messages, and answers as pieces. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from openai_local.cli.client import PromptTooLong, choices, text
from openai_local.cli.service import Service

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """Of an answer, or of the thought before it."""

    text: str
    is_thought: bool = False


@dataclass(slots=True)
class Speed:
    """What an answer took. Counts are the server's, None where it tells none."""

    first_s: float | None = None
    last_s: float = 0.0
    n_prompt: int | None = None
    n_cached: int = 0
    n_generated: int | None = None
    finish_reason: str | None = None

    def line(self) -> str:
        """In words."""
        if self.first_s is None or self.n_generated is None:
            return "the server told no counts"
        seconds = self.last_s - self.first_s
        rate = f", {(self.n_generated - 1) / seconds:.1f} tokens/s" if seconds > 0 else ""
        return (
            f"{self.n_generated} tokens{rate}, the first after {self.first_s:.2f} s;"
            f" prompt: {self.n_prompt} tokens, {self.n_cached} of them from before"
        )


@dataclass(slots=True)
class Conversation:
    """``parameters`` go with every request; with ``counts`` the server is asked for them, too.

    ``n_left_out`` are the first messages, but for the system's, that the context has no room for.
    """

    service: Service
    parameters: dict[str, Any] = field(default_factory=dict)
    counts: bool = False
    messages: list[Message] = field(default_factory=list)
    n_left_out: int = 0
    speed: Speed = field(default_factory=Speed)

    def set_system(self, text: str) -> None:
        """In place of the system message there was; none if empty."""
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Begin anew, with the system message."""
        self._replace([m for m in self.messages if m["role"] == "system"])

    def load(self, messages: Any) -> None:
        """Go on from ``messages``, as they were saved. Raises ValueError for what are none."""
        self._replace(checked(messages))

    def ask(self, text: str) -> Generator[Piece]:
        """The pieces of an answer to a further message, to which it is added, also if it is
        stopped. What got no answer at all is forgotten. Raises CommandFailed."""
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def retry(self) -> Generator[Piece] | None:
        """Another answer in place of the last, which stays if there comes none. None if nothing
        was asked."""
        messages = list(self.messages)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages or messages[-1]["role"] != "user":
            return None
        return self._answer(messages)

    def _replace(self, messages: list[Message]) -> None:
        self.messages, self.n_left_out = messages, 0

    def _answer(self, messages: list[Message]) -> Generator[Piece]:
        self.speed = Speed()
        began = time.monotonic()
        content: list[str] = []
        ended = False
        try:
            with closing(self._chunks(messages)) as chunks:
                for piece in self._pieces(chunks):
                    self.speed.last_s = time.monotonic() - began
                    if self.speed.first_s is None:
                        self.speed.first_s = self.speed.last_s
                    if not piece.is_thought:
                        content.append(piece.text)
                    yield piece
            ended = True
        finally:
            if ended or content:
                self.messages = [*messages, {"role": "assistant", "content": "".join(content)}]

    def _chunks(self, messages: list[Message]) -> Generator[dict[str, Any]]:
        """Of the answer. Where the messages are too long, it is one to the last of them."""
        options = {"stream_options": {"include_usage": True}} if self.counts else {}
        system = [m for m in messages if m["role"] == "system"]
        others = [m for m in messages if m["role"] != "system"]
        while True:
            sent = system + others[self.n_left_out :]
            body = {"model": self.service.model, "messages": sent, **self.parameters, **options}
            try:
                yield from self.service.client.stream("chat/completions", body)
                return
            except PromptTooLong:
                later = _next_question(others, self.n_left_out)
                if later is None:
                    raise
                self.n_left_out = later

    def _pieces(self, chunks: Iterable[Mapping[str, Any]]) -> Iterator[Piece]:
        for chunk in chunks:
            self._count(chunk)
            yield from _pieces(chunk)

    def _count(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            details = usage.get("prompt_tokens_details")
            self.speed.n_prompt = _number(usage, "prompt_tokens")
            self.speed.n_generated = _number(usage, "completion_tokens")
            self.speed.n_cached = _number(details, "cached_tokens") or 0
        for choice in choices(chunk):
            self.speed.finish_reason = choice.get("finish_reason") or self.speed.finish_reason


def checked(messages: Any) -> list[Message]:
    """``messages`` that can be sent. Raises ValueError."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("it is no list of messages")
    for number, message in enumerate(messages, 1):
        if (
            not isinstance(message, dict)
            or message.get("role") not in ("system", "user", "assistant")
            or not isinstance(message.get("content"), str)
        ):
            raise ValueError(f"message {number} has no role and content")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _next_question(messages: Sequence[Message], start: int) -> int | None:
    """Where the first user's message behind ``start`` is."""
    later = range(start + 1, len(messages))
    return next((i for i in later if messages[i]["role"] == "user"), None)


def _number(counts: Any, name: str) -> int | None:
    number = counts.get(name) if isinstance(counts, dict) else None
    return number if isinstance(number, int) else None


def _pieces(chunk: Mapping[str, Any]) -> Iterator[Piece]:
    for choice in choices(chunk):
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        # Ours and llama-server's name, and that of others.
        thought = text(delta.get("reasoning_content") or delta.get("reasoning"))
        if thought:
            yield Piece(thought, is_thought=True)
        said = text(delta.get("content") or delta.get("refusal"))
        if said:
            yield Piece(said)
