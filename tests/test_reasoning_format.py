from __future__ import annotations

from typing import Any

import pytest

from openai_local.chat.reasoning import ReasoningFormat, Thought, reasoning_kwargs
from openai_local.chat.template import ChatTemplate

HEAD = "{% for m in messages %}<{{ m.role }}>"
TAIL = "</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>PROMPT{% endif %}"


def found(body: str, prompt: str = "") -> ReasoningFormat | None:
    return ChatTemplate(HEAD + body + TAIL.replace("PROMPT", prompt)).reasoning_format


@pytest.mark.parametrize(
    ("body", "prompt", "expected"),
    [
        ("{{ m.content }}", "", None),
        ("{% if m.reasoning_content %}<t>\n{{ m.reasoning_content }}\n</t>\n\n{% endif %}"
         "{{ m.content }}", "", ReasoningFormat("<t>", "</t>")),
        ("{% if m.thinking %}<|c|>inner<|m|>{{ m.thinking }}<|e|>{% endif %}{{ m.content }}", "",
         ReasoningFormat("<|c|>inner<|m|>", "<|e|>")),
        ("{% if m.reasoning_content and enable_thinking %}[T]{{ m.reasoning_content }}[/T]"
         "{% endif %}{{ m.content }}", "", ReasoningFormat("[T]", "[/T]")),
        ("{{ m.content }}", "<think>\n", ReasoningFormat("<think>", "</think>")),
        ("{{ m.content }}", "{{ '<think></think>' if enable_thinking is false }}",
         ReasoningFormat("<think>", "</think>")),
        ("{{ m.content.split('</think>')[-1] }}", "", ReasoningFormat("<think>", "</think>")),
        ("{% if m.role == 'assistant' %}[R]{{ m.content }}[/R]{% else %}{{ m.content }}{% endif %}",
         "", ReasoningFormat("", "", ("[R]", "[/R]"))),
        ("{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
         "{{ '[THINK]' + p.thinking + '[/THINK]' if p.type == 'thinking' else p.text }}"
         "{% endfor %}{% endif %}", "", ReasoningFormat("[THINK]", "[/THINK]")),
    ],
)  # fmt: skip
def test_marks_of_thoughts_are_read_off(
    body: str, prompt: str, expected: ReasoningFormat | None
) -> None:
    assert found(body, prompt) == expected


def test_a_prompt_says_where_it_leaves_the_model() -> None:
    think = ReasoningFormat("<think>", "</think>")
    assert think.state("<assistant><think>\n") is Thought.OPEN
    assert think.state("<assistant><think>\n\n</think>\n\n") is Thought.NONE
    assert think.state("<user>what is <think>?</user><assistant>") is Thought.MAYBE
    assert ReasoningFormat("", "[END]").state("") is Thought.OPEN
    assert ReasoningFormat("", "", ("<R>", "</R>")).state("") is Thought.NONE


@pytest.mark.parametrize(
    ("effort", "variables", "expected"),
    [
        ("high", {"reasoning_effort", "messages"}, {"reasoning_effort": "high"}),
        ("minimal", {"reasoning_effort"}, {"reasoning_effort": "low"}),
        ("none", {"enable_thinking"}, {"enable_thinking": False}),
        ("low", {"thinking", "thinking_mode"}, {"thinking": True, "thinking_mode": "enabled"}),
        ("high", {"messages"}, {}),
    ],
)
def test_the_effort_is_told_in_the_templates_own_words(
    effort: str, variables: set[str], expected: dict[str, Any]
) -> None:
    assert reasoning_kwargs(effort, variables) == expected
