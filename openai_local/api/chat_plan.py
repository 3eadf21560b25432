"""A chat request made ready for the engine: its prompt, what binds the text, how it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from openai_local.api.answers import Answer
from openai_local.api.constraints import Asked, behind_thought, compiled, refusal, schema_of
from openai_local.api.errors import RequestError
from openai_local.api.generation import INLINE_CHARS, off_loop, tokenize_prompt
from openai_local.api.messages import for_template
from openai_local.api.tools import ToolUse
from openai_local.api.types.chat_completions import ChatCompletionRequest
from openai_local.chat.language import ChatLanguage
from openai_local.chat.parser import ChatParser
from openai_local.chat.reasoning import ReasoningFormat, Thought, reasoning_kwargs
from openai_local.chat.template import ChatTemplate
from openai_local.chat.tool_formats import SchemaUnsupported, ToolFormat
from openai_local.engine import (
    CompiledConstraint,
    Constraint,
    Engine,
    InvalidConstraint,
    ThoughtLimit,
    UnstoppedText,
)
from openai_local.models.loads import LoadedModel

# What the renderer sets itself.
_OWN_VARIABLES = frozenset(
    {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "functions"}
)


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """``tool_format`` and ``reasoning`` are those by which the text is taken apart.

    ``bound`` is what binds the text, ``asked`` what the request wants of an answer.
    """

    tokens: list[int]
    prompt: str
    bound: Asked | None
    asked: Asked | None
    tools: ToolUse | None
    tool_format: ToolFormat | None
    reasoning: ReasoningFormat | None
    visible: frozenset[int]
    thought: ThoughtLimit | None

    @property
    def is_plain(self) -> bool:
        """Whether all of the text is the answer."""
        return self.tool_format is None and self.reasoning is None

    @property
    def unstopped(self) -> UnstoppedText | None:
        """Calls: stop strings are of what is said."""
        if self.tools is None or self.tool_format is None:
            return None
        names = [tool["function"]["name"] for tool in self.tools.callable]
        marks, first = self.tool_format.call_marks(names)
        if self.reasoning is not None and self.reasoning.end:
            ends = [self.reasoning.end + space for space in ("", "\n", "\n\n")]
            marks += tuple(end + mark for end in ends for mark in first)
        return UnstoppedText(marks, first)

    def answer(self) -> Answer:
        """For one choice."""
        tools = self.tools
        parser = ChatParser(
            tools=tools.callable if tools else (),
            tool_format=self.tool_format,
            reasoning=self.reasoning,
            prompt=self.prompt,
        )
        return Answer(parser, tools.custom if tools else (), legacy=bool(tools and tools.legacy))

    async def compiled(self, engine: Engine) -> CompiledConstraint:
        """Raises RequestError, which names the tool where it is a tool's schema."""
        assert self.bound is not None, "something binds the text"
        if self.tools is None:
            return await compiled(engine, self.bound)
        if self.asked is not None:  # alone, so that what is wrong in it is told by its name
            await compiled(engine, self.asked)
        constraint, tools = self.bound.constraint, self.tools
        try:
            return await engine.compiled(constraint)
        except InvalidConstraint as error:
            param = await _guilty(engine, tools) or self.bound.param
            raise refusal(error, param) from None


async def _guilty(engine: Engine, tools: ToolUse) -> str | None:
    """The tool whose schema alone cannot be compiled either."""
    for tool in tools.callable:
        lark = f"start: %json {json.dumps(tool['function']['parameters'])}"
        lark = tool.get("lark", lark)
        try:
            await engine.compiled(Constraint("lark", lark))
        except InvalidConstraint:
            return tools.params[tool["function"]["name"]]
    return None


def check_together(asked: Asked | None, tools: ToolUse | None) -> None:
    """Raises RequestError for a format that cannot stand beside calls: those that are no JSON."""
    if asked is not None and tools is not None and schema_of(asked) is None:
        name = asked.param.partition(".")[0]
        raise RequestError(
            f"The '{name}' parameter cannot be set together with"
            f" '{'functions' if tools.legacy else 'tools'}' that may be called.",
            param=name,
            code="invalid_parameter_combination",
        )


async def plan_chat(
    body: ChatCompletionRequest, model: LoadedModel, asked: Asked | None, tools: ToolUse | None
) -> ChatPlan:
    """Raises RequestError, TemplateError."""
    template, language = model.template, model.language
    if template is None or language is None:
        raise RequestError(
            f"The model {model.id!r} cannot chat: {model.no_chat}.",
            param="model",
            code="unsupported_model",
        )
    if tools is not None and language.tool_format is None:
        raise RequestError(
            f"The model {model.id!r} calls tools in a syntax that is not known.",
            param="functions" if tools.legacy else "tools",
            code="unsupported_model",
        )
    messages = for_template(body.messages)
    kwargs = template_kwargs(body, template, language)
    # The template adds text of its own to each message; tools and calls are seldom short.
    size = sum(
        len(message["content"]) + (INLINE_CHARS if "tool_calls" in message else 64)
        for message in messages
    )
    size += INLINE_CHARS if tools else 0

    def plan() -> ChatPlan:
        rendered = template.render(
            messages,
            tools=tools.shown if tools else None,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            kwargs=kwargs,
        )
        tokens, prompt = tokenize_prompt(model.engine, rendered), rendered.text
        formats = _formats(body, language, tools)
        bound = asked and behind_thought(asked, language, prompt)
        tool_format, reasoning, visible = formats
        if tools is not None:
            bound = _calls(language, tools, prompt, asked)
            if asked is not None and tool_format is not None and not tools.required:
                tool_format = tool_format.beside_answer()
        limit = _limit(body.thought_budget(), language, prompt)
        return ChatPlan(tokens, prompt, bound, asked, tools, tool_format, reasoning, visible, limit)

    return await off_loop(size, plan)


def _limit(n_tokens: int | None, language: ChatLanguage, prompt: str) -> ThoughtLimit | None:
    reasoning = language.reasoning
    if n_tokens is None or reasoning is None:
        return None
    thought = reasoning.state(prompt)
    if thought is Thought.NONE:
        return None
    opening = reasoning.start if thought is Thought.MAYBE else ""
    return ThoughtLimit(n_tokens, reasoning.end, opening)


def _formats(
    body: ChatCompletionRequest, language: ChatLanguage, tools: ToolUse | None
) -> tuple[ToolFormat | None, ReasoningFormat | None, frozenset[int]]:
    """By which the text is taken apart, and the control tokens that it then has."""
    format, reasoning = language.tool_format, language.reasoning
    if tools is None and not (format is not None and format.answer):
        format = None  # without tools no calls are looked for
    visible = language.visible((format, reasoning))
    if body.reasoning_format == "none":
        if format is not None and format.answer:
            raise RequestError(
                "The 'reasoning_format' parameter 'none' has no meaning for this model, whose"
                " answers are marked as its thoughts are.",
                param="reasoning_format",
                code="unsupported_value",
            )
        reasoning = None
    return format, reasoning, visible


def _calls(language: ChatLanguage, tools: ToolUse, prompt: str, asked: Asked | None) -> Asked:
    """The grammar of calls, and of what may be said instead: what is ``asked`` for, or anything."""
    reasoning, format = language.reasoning, language.tool_format
    answer = schema_of(asked) if asked is not None else None
    if asked is not None and answer is not None and format is not None and not tools.required:
        if (reason := format.refusal_beside(answer)) is not None:
            name = asked.param.partition(".")[0]
            raise RequestError(
                f"The '{name}' parameter cannot be set together with tools that may be called with"
                f" this model, whose calls are JSON objects, {reason}. With 'tool_choice'"
                " 'required' it can.",
                param=name,
                code="invalid_parameter_combination",
            )
    thought = reasoning.state(prompt) if reasoning is not None else Thought.NONE
    try:
        grammar = language.grammar(
            tools.callable, required=tools.required, parallel=tools.parallel, thought=thought,
            answer=answer,
        )  # fmt: skip
    except SchemaUnsupported as error:
        param = tools.params.get(error.tool, asked.param if asked else "tools")
        raise RequestError(
            f"Unsupported '{param}': {error}.", param=param, code="unsupported_value"
        ) from None
    return Asked(Constraint("lark", grammar), "functions" if tools.legacy else "tools")


def template_kwargs(
    body: ChatCompletionRequest, template: ChatTemplate, language: ChatLanguage
) -> dict[str, Any]:
    """The template's variables that the request sets. Raises RequestError for what has no effect.

    A model that cannot think may be asked not to.
    """
    effort, given = body.reasoning_effort, body.chat_template_kwargs or {}
    kwargs: dict[str, Any] = {}
    if effort is not None:
        kwargs = reasoning_kwargs(effort, template.variables)
        # Medium is the specification's default.
        neutral = effort == "medium" or (effort == "none" and not language.thinks)
        if not kwargs and not neutral:
            raise RequestError(
                f"Unsupported value: 'reasoning_effort' does not support {effort!r} with this"
                " model, whose chat template has no such choice.",
                param="reasoning_effort",
                code="unsupported_value",
            )
    for name, value in given.items():
        if name in template.variables and name not in _OWN_VARIABLES:
            continue
        if name in ("enable_thinking", "thinking") and value is False and not language.thinks:
            continue
        raise RequestError(
            f"Unsupported 'chat_template_kwargs.{name}': the model's chat template does not read"
            " it, or it is set by other parameters.",
            param=f"chat_template_kwargs.{name}",
            code="unsupported_parameter",
        )
    return {**kwargs, **given}
