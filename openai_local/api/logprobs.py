"""Log-probabilities in OpenAI's two shapes: of chat, and of text completions. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from openai_local.engine import TokenLogprob


def extend(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a chunk's logprobs, of either shape, to those before it."""
    for key, values in part.items():
        if values is None:
            whole.setdefault(key, None)
        else:
            whole[key] = [*(whole.get(key) or ()), *values]


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any] | None:
    """Of one delta; None where there are none."""
    content = [
        {**_entry(token), "top_logprobs": [_entry(other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None} if content else None


def _entry(token: TokenLogprob) -> dict[str, Any]:
    # A control token has a name and no bytes.
    text = token.name or token.piece.decode("utf-8", "replace")
    return {
        "token": text,
        "logprob": token.logprob,
        "bytes": None if token.name else list(token.piece),
    }


class TextLogprobs:
    """Of one choice of a text completion, delta by delta.

    ``text_offset`` counts characters from the prompt's beginning, whether the prompt is echoed or
    not, as OpenAI does.
    """

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._offset = len(prompt)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def of_prompt(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        """The first token comes after nothing, so its logprobs are null."""
        end, self._offset = self._offset, 0
        shape = self._shape(tokens, self._prompt)
        self._offset = end
        self._decoder.reset()
        return shape

    def of_delta(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        return self._shape(tokens, "")

    def _shape(self, tokens: Iterable[TokenLogprob], text: str) -> dict[str, Any] | None:
        shape: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []
        }  # fmt: skip
        for token in tokens:
            shape["tokens"].append(_text(token))
            shape["token_logprobs"].append(token.logprob)
            shape["top_logprobs"].append(_alternatives(token))
            shape["text_offset"].append(self._offset)
            if token.name and text.startswith(token.name, self._offset):
                self._offset += len(token.name)
            self._offset += len(self._decoder.decode(token.piece))
        return shape if shape["tokens"] else None


def _alternatives(token: TokenLogprob) -> dict[str, float | None] | None:
    if token.logprob is None:
        return None
    return {_text(other): other.logprob for other in (*token.top, token)}


def _text(token: TokenLogprob) -> str:
    """A token that is not whole characters is written as its bytes."""
    if token.name:
        return token.name
    try:
        return token.piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.piece)
