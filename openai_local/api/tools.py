"""The tools of a chat: which the model is shown, which it may call, and whether it must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai_local.api.errors import RequestError
from openai_local.api.messages import CUSTOM_INPUT
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.api.types.tools import (
    AllowedToolsChoice,
    CustomChoice,
    CustomTool,
    FunctionTool,
    GrammarInput,
    NamedTool,
)

ToolDict = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """``shown`` are all tools, as templates and tool formats read them; ``callable`` those that
    may be called: of them one must be if ``required``, and several may if ``parallel``.

    Of those, what has ``lark`` is called with a text of that grammar.

    ``legacy`` requests want the deprecated shape of calls; ``custom`` names tools whose input is
    text. ``params`` has the path of each tool in the request.
    """

    shown: Sequence[ToolDict]
    callable: Sequence[ToolDict]
    required: bool
    parallel: bool
    custom: frozenset[str]
    legacy: bool
    params: dict[str, str]


def read_tools(body: ChatCompletionRequest) -> ToolUse | None:
    """None where no tool may be called: then the model is shown none. Raises RequestError."""
    if body.functions or body.function_call not in (None, "none", "auto"):
        if body.tools or body.tool_choice is not None:
            name = "functions" if body.functions else "function_call"
            raise _refusal(name, "cannot be set together with 'tools'", combined=True)
        return _read_functions(body)
    tools = body.tools or []
    if not tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise _refusal("tool_choice", "is only allowed when 'tools' are specified")
        return None
    shown, params, custom, grammars = [], dict[str, str](), set[str](), dict[str, str]()
    for i, tool in enumerate(tools):
        where = f"tools.[{i}].{tool.type}"
        definition, name = _definition(tool, where)
        if name in params:
            raise _refusal(f"{where}.name", f"is {name!r} a second time")
        params[name] = f"{where}.parameters" if tool.type == "function" else f"{where}.format"
        shown.append(definition)
        if isinstance(tool, CustomTool):
            custom.add(name)
            input = tool.custom.format
            if isinstance(input, GrammarInput) and input.grammar.syntax == "lark":
                grammars[name] = input.grammar.definition
    kinds = {name: "custom" if name in custom else "function" for name in params}
    choice = _choice(body, kinds)
    if choice is None:
        return None
    names, required, parallel = choice
    callable = [
        {**tool, "lark": grammars[name]} if name in grammars else tool
        for tool in shown if (name := tool["function"]["name"]) in names
    ]  # fmt: skip
    return ToolUse(
        shown, callable, required,
        parallel and body.parallel_tool_calls is not False, frozenset(custom), False, params,
    )  # fmt: skip


def _choice(
    body: ChatCompletionRequest, kinds: dict[str, str]
) -> tuple[set[str], bool, bool] | None:
    """The names that may be called, whether one must be, whether several may be."""
    choice = body.tool_choice
    if choice == "none":
        return None
    if choice is None or isinstance(choice, str):
        return set(kinds), choice == "required", True
    if isinstance(choice, AllowedToolsChoice):
        where = "tool_choice.allowed_tools.tools"
        allowed = [_allowed(t, f"{where}.[{i}]") for i, t in enumerate(choice.allowed_tools.tools)]
        for i, (kind, name) in enumerate(allowed):
            _check_known(name, kind, kinds, f"{where}.[{i}].{kind}.name")
        return {name for _, name in allowed}, choice.allowed_tools.mode == "required", True
    kind = "custom" if isinstance(choice, CustomChoice) else "function"
    name = choice.custom.name if isinstance(choice, CustomChoice) else choice.function.name
    _check_known(name, kind, kinds, f"tool_choice.{kind}.name")
    return {name}, True, False  # a tool that is named is called once


def _allowed(tool: ToolDict, where: str) -> tuple[str, str]:
    kind = tool.get("type")
    named = tool.get(kind) if kind in ("function", "custom") else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        raise _refusal(where, "must be a tool's type and name, as in 'tools'")
    return str(kind), name


def _check_known(name: str, kind: str, kinds: dict[str, str], param: str) -> None:
    if kinds.get(name) != kind:
        raise _refusal(param, f"is {name!r}, which is no {kind} in 'tools'")


def _read_functions(body: ChatCompletionRequest) -> ToolUse | None:
    functions = body.functions or []
    shown, params = [], dict[str, str]()
    for i, function in enumerate(functions):
        where = f"functions.[{i}]"
        if function.name in params:
            raise _refusal(f"{where}.name", f"is {function.name!r} a second time")
        _check_parameters(function.parameters, f"{where}.parameters")
        params[function.name] = f"{where}.parameters"
        shown.append(_shown(function.name, function.description, function.parameters))
    choice = body.function_call
    if choice == "none":
        return None
    callable = shown
    if isinstance(choice, NamedTool):
        if choice.name not in params:
            raise _refusal("function_call.name", f"is {choice.name!r}, which is not in 'functions'")
        callable = [tool for tool in shown if tool["function"]["name"] == choice.name]
    required = isinstance(choice, NamedTool)
    return ToolUse(shown, callable, required, False, frozenset(), True, params)


def _definition(tool: FunctionTool | CustomTool, where: str) -> tuple[ToolDict, str]:
    if isinstance(tool, CustomTool):
        custom = tool.custom
        schema: dict[str, Any] = {"type": "string"}
        if isinstance(custom.format, GrammarInput):
            grammar = custom.format.grammar
            if grammar.syntax == "lark":
                schema["description"] = f"A text of this Lark grammar:\n{grammar.definition}"
            else:
                schema["pattern"] = f"^(?:{grammar.definition})$"
        properties = {CUSTOM_INPUT: schema}
        parameters = {"type": "object", "properties": properties, "required": [CUSTOM_INPUT]}
        return _shown(custom.name, custom.description, parameters), custom.name
    function = tool.function
    _check_parameters(function.parameters, f"{where}.parameters")
    return _shown(function.name, function.description, function.parameters), function.name


def _shown(name: str, description: str | None, parameters: dict[str, Any] | None) -> ToolDict:
    function: ToolDict = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _check_parameters(parameters: dict[str, Any] | None, param: str) -> None:
    kind = (parameters or {}).get("type", "object")
    if kind != "object":
        raise _refusal(param, f"must be a schema of type 'object', not {kind!r}")


def _refusal(param: str, text: str, *, combined: bool = False) -> RequestError:
    code = "invalid_parameter_combination" if combined else "invalid_value"
    return RequestError(f"The '{param}' parameter {text}.", param=param, code=code)
