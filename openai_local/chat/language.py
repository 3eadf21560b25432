"""A template's thoughts and calls in one model's tokens: which marks are tokens, and grammars.

Knows no HTTP. Free to every thread.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openai_local.chat.parser import visible_tokens
from openai_local.chat.reasoning import ReasoningFormat, Thought
from openai_local.chat.template import ChatTemplate
from openai_local.chat.tool_formats import ToolFormat
from openai_local.engine.backend import Vocabulary

MAX_GRAMMARS = 64


class ChatLanguage:
    """What a model's template and vocabulary say together."""

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        """Renders the template's probes, which takes a while."""
        self._vocabulary = vocabulary
        self.tool_format: ToolFormat | None = template.tool_format
        self.reasoning: ReasoningFormat | None = template.reasoning_format
        self._visible = {id(f): self._hidden(f) for f in (self.tool_format, self.reasoning) if f}
        self._special = self._find_special()
        self._lock = threading.Lock()
        self._grammars: OrderedDict[str, str] = OrderedDict()

    @property
    def thinks(self) -> bool:
        """Whether the model has marks for thoughts."""
        return self.reasoning is not None and bool(self.reasoning.end)

    def visible(self, formats: Iterable[ToolFormat | ReasoningFormat | None]) -> frozenset[int]:
        """The control tokens whose text a parser of ``formats``, of those here, must see."""
        found = (self._visible[id(f)] for f in formats if f is not None)
        return frozenset[int]().union(*found)

    def grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        required: bool,
        parallel: bool,
        thought: Thought,
        answer: Mapping[str, Any] | None,
    ) -> str:
        """As ToolFormat.grammar, kept for the next request. Raises SchemaUnsupported."""
        assert self.tool_format is not None, "without calls there is no grammar of them"
        key = json.dumps([tools, required, parallel, thought.value, answer])
        with self._lock:
            if key in self._grammars:
                self._grammars.move_to_end(key)
                return self._grammars[key]
        grammar = self.tool_format.grammar(
            tools, required=required, parallel=parallel, special=self._special,
            reasoning=self.reasoning, thought=thought, answer=answer,
        )  # fmt: skip
        with self._lock:
            self._grammars[key] = grammar
            while len(self._grammars) > MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        return grammar

    def _hidden(self, format: ToolFormat | ReasoningFormat) -> frozenset[int]:
        texts = visible_tokens([format], self._vocabulary.control_tokens)
        return frozenset(token for text in texts for token in self._tokens(text))

    def _find_special(self) -> dict[str, int]:
        """The tokens within marks that are special to a grammar, by their texts."""
        special: dict[str, int] = {}
        for format in (self.tool_format, self.reasoning):
            for mark in format.markers if format is not None else ():
                for token in self._tokens(mark):
                    text, is_special = self._vocabulary.spelling(token)
                    if is_special:
                        special[text.decode(errors="replace")] = token
        return special

    def _tokens(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=True)
