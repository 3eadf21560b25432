"""Jinja as Hugging Face sets it up for chat templates, bounded. Knows no messages and no tokens.

A template comes from the model file, so it runs in Jinja's sandbox, within bounds of time and of
what it can build. It may change lists that it made itself: those of the caller it may not.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.meta
import jinja2.parser
import jinja2.sandbox
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE_CHARS = 1 << 20
MAX_PROMPT_CHARS = 64 << 20
MAX_LIST_ITEMS = 1 << 18
MAX_RENDER_S = 5.0

_LIST_CHANGES = frozenset({"append", "extend", "insert", "pop", "remove", "reverse"})


class TemplateError(Exception):
    """The template is missing or broken, or refused the messages; the message says why."""


class TemplateTooSlow(TemplateError):
    """The template ran for longer than any is let run."""

    def __init__(self) -> None:
        super().__init__(f"the chat template ran for more than {MAX_RENDER_S:.0f} s")


class CompiledTemplate:
    """A template's code. Each thread renders in an environment of its own, so they may share it."""

    def __init__(self, source: str) -> None:
        """Raises TemplateError if it does not compile."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError("the chat template is too large")
        environment = _Sandbox()
        try:
            tree = environment.parse(source)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
            self._code = environment.compile(_Bounded().visit(tree))
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the chat template does not compile: {error}") from None
        self._own = threading.local()

    def render(self, context: Mapping[str, Any]) -> str:
        """Raises TemplateError, with the template's own words where it refused."""
        template, environment = self._thread_template()
        environment.begin(context)
        parts: list[str] = []
        size = 0
        try:
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
        return "".join(parts)

    def _thread_template(self) -> tuple[jinja2.Template, _Sandbox]:
        """This thread's. One for each rendering would be left to the garbage collector."""
        if not hasattr(self._own, "pair"):
            environment = _Sandbox()
            template = jinja2.Template.from_code(environment, self._code, environment.globals)
            self._own.pair = template, environment
        pair: tuple[jinja2.Template, _Sandbox] = self._own.pair
        return pair


class _Bounded(NodeTransformer):
    """Has every round of a loop look at the clock, and every joined text at its size."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("check", [], node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join_texts", node.nodes, node.lineno)


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    # An attribute of the environment is out of the template's reach.
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant says, for training; here it only scopes."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Bounds what a template can cost as well as what it can touch."""

    intercepted_binops = frozenset(["*", "**", "+"])
    deadline = float("inf")

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
        )
        self._protected: set[int] = set()
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
        )
        self.filters["tojson"] = _tojson

    def begin(self, context: Mapping[str, Any]) -> None:
        """A rendering, which must end in time and leave the lists of ``context`` as they are."""
        self.deadline = time.monotonic() + MAX_RENDER_S
        self._protected.clear()
        self._protect(context)

    def handle_exception(self, source: str | None = None) -> NoReturn:
        # Jinja's own makes a traceback in the template's lines, which nobody reads, and whose
        # frames keep what all callers had until the garbage collector comes.
        raise

    def check(self) -> None:
        if time.monotonic() > self.deadline:
            raise TemplateTooSlow

    def join_texts(self, *values: Any) -> str:
        texts = list(map(str, values))
        if sum(map(len, texts)) > MAX_PROMPT_CHARS:
            raise TemplateError("the chat template makes too large a value")
        return "".join(texts)

    def _protect(self, value: Any) -> None:
        """Lists within ``value`` stay as they are. The caller keeps it alive."""
        if isinstance(value, Mapping):
            for item in value.values():
                self._protect(item)
        elif isinstance(value, list):
            self._protected.add(id(value))
            for item in value:
                self._protect(item)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if type(obj) is list and attr in _LIST_CHANGES:
            if len(obj) > MAX_LIST_ITEMS:
                raise TemplateError("the chat template makes too large a value")
            return id(obj) not in self._protected
        return super().is_safe_attribute(obj, attr, value)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self.check()
        return super().call(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) for side in (left, right) if isinstance(side, (str, list, tuple))]
        if operator == "+":
            size, most = sum(sizes), MAX_PROMPT_CHARS
        else:
            counts = [abs(side) for side in (left, right) if isinstance(side, int)]
            bounded = sizes or operator == "**"
            size = max(sizes, default=1) * max(counts, default=1) if bounded else 0
            most = MAX_TEMPLATE_CHARS
        if size > most:
            raise TemplateError("the chat template makes too large a value")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not Jinja's own, which escapes for HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_as_list,
    )


def _as_list(value: Any) -> list[Any]:
    # What `map` and `select` give is an iterator.
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
