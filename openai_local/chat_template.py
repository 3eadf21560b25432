"""Messages to a prompt, with the model's own Jinja template. Knows no tokens and no HTTP.

The template comes from the model file, so it runs in Jinja's sandbox, within bounds of time and
size. What users wrote must not become control tokens: each control token's text in a message is
replaced by a placeholder while the template runs, and comes out as plain text.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.sandbox
from jinja2.ext import loopcontrols

MAX_TEMPLATE_CHARS = 1 << 20
MAX_PROMPT_CHARS = 64 << 20
MAX_RENDER_S = 5.0

# Private-use characters: they mean nothing in any template.
_OPEN, _CLOSE = "\uf8f0", "\uf8f1"


class TemplateError(Exception):
    """The template is missing or broken, or refused the messages; the message says why."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the prompt; in ``trusted`` ones special tokens are meant."""

    text: str
    trusted: bool


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as text, in order."""

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Bounds what a template can cost as well as what it can touch."""

    intercepted_binops = frozenset(["*", "**"])
    deadline = float("inf")

    def check(self) -> None:
        if time.monotonic() > self.deadline:
            raise TemplateError(f"the chat template ran for more than {MAX_RENDER_S:.0f} s")

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self.check()
        return super().call(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) for side in (left, right) if isinstance(side, (str, list, tuple))]
        if sizes or operator == "**":
            counts = [abs(side) for side in (left, right) if isinstance(side, int)]
            if max(sizes, default=1) * max(counts, default=1) > MAX_TEMPLATE_CHARS:
                raise TemplateError("the chat template makes too large a value")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled template. Safe to render from one thread at a time per call."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Sequence[str] = (),
    ) -> None:
        """Raises TemplateError if it does not compile."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError("the chat template is too large")
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        # The longest first, so that no token hides behind its own beginning.
        texts = sorted({t for t in control_tokens if t}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        try:
            self._code = self._environment().compile(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not compile: {error}") from None

    def knows(self, word: str) -> bool:
        """Whether the template speaks of ``word``, a role or a message field."""
        return word in self.source

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> RenderedPrompt:
        """The prompt of ``messages``. Raises TemplateError."""
        environment = self._environment()
        environment.deadline = time.monotonic() + MAX_RENDER_S
        hidden: list[str] = []
        context = {
            **self._tokens,
            "messages": self._hide(list(messages), hidden),
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
        }
        parts: list[str] = []
        size = 0
        try:
            template = jinja2.Template.from_code(environment, self._code, environment.globals)
            for part in template.generate(context):
                environment.check()
                size += len(part)
                if size > MAX_PROMPT_CHARS:
                    raise TemplateError("the chat template makes too long a prompt")
                parts.append(part)
        except TemplateError:
            raise
        except Exception as error:
            raise TemplateError(f"the chat template refused the messages: {error}") from None
        return RenderedPrompt(tuple(_split("".join(parts), hidden)))

    def _environment(self) -> _Sandbox:
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

        def bounded_range(*args: int) -> Iterator[int]:
            for i in range(*args):
                environment.check()
                yield i

        environment.globals.update(
            range=bounded_range,
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
        )
        environment.filters["tojson"] = _tojson
        return environment

    def _hide(self, value: Any, hidden: list[str]) -> Any:
        if isinstance(value, str):
            value = value.replace(_OPEN, "\ufffd").replace(_CLOSE, "\ufffd")
            if self._control is None:
                return value

            def placeholder(match: re.Match[str]) -> str:
                hidden.append(match.group())
                return f"{_OPEN}{len(hidden) - 1}{_CLOSE}"

            return self._control.sub(placeholder, value)
        if isinstance(value, Mapping):
            return {
                self._hide(key, hidden): self._hide(item, hidden) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._hide(item, hidden) for item in value]
        return value


def _split(text: str, hidden: Sequence[str]) -> Iterator[Segment]:
    at = 0
    for match in re.finditer(f"{_OPEN}(\\d+){_CLOSE}", text):
        if match.start() > at:
            yield Segment(text[at : match.start()], True)
        yield Segment(hidden[int(match.group(1))], False)
        at = match.end()
    if at < len(text):
        yield Segment(text[at:], True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    # Not Jinja's own, which escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)
