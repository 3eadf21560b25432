"""A chat: its messages, and answers as pieces. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from openai_local.cli.service import Service


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
    """``parameters`` go with every request."""

    service: Service
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    speed: Speed = field(default_factory=Speed)

    def set_system(self, text: str) -> None:
        """In place of the system message there was; none if empty."""
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Begin anew, with the system message."""
        self.messages = [m for m in self.messages if m["role"] == "system"]

    def forget_answer(self) -> bool:
        """Back to before the last answer; False if nothing was asked."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return bool(self.messages) and self.messages[-1]["role"] == "user"

    def ask(self, text: str) -> Iterator[Piece]:
        """As :meth:`answer`, to a further message."""
        self.messages.append({"role": "user", "content": text})
        return self.answer()

    def answer(self) -> Iterator[Piece]:
        """The pieces of an answer to the messages, to which it is added, also if it is stopped.

        What got no answer at all is forgotten. Raises CommandFailed.
        """
        body = {"model": self.service.model, "messages": self.messages, **self.parameters}
        self.speed = Speed()
        began = time.monotonic()
        content: list[str] = []
        ended = False
        try:
            for chunk in self.service.client.stream("chat/completions", body):
                self._count(chunk)
                for piece in _pieces(chunk):
                    self.speed.last_s = time.monotonic() - began
                    if self.speed.first_s is None:
                        self.speed.first_s = self.speed.last_s
                    if not piece.is_thought:
                        content.append(piece.text)
                    yield piece
            ended = True
        finally:
            if ended or content:
                self.messages.append({"role": "assistant", "content": "".join(content)})
            else:
                self.messages.pop()

    def _count(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage")
        if usage:
            self.speed.n_prompt = usage.get("prompt_tokens")
            self.speed.n_generated = usage.get("completion_tokens")
            self.speed.n_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        for choice in chunk.get("choices") or ():
            self.speed.finish_reason = choice.get("finish_reason") or self.speed.finish_reason


def _pieces(chunk: Mapping[str, Any]) -> Iterator[Piece]:
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        # Ours and llama-server's name, and that of others.
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought:
            yield Piece(thought, is_thought=True)
        text = delta.get("content") or delta.get("refusal")
        if text:
            yield Piece(text)
