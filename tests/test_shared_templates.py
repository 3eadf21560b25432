"""Every template of ../shared: Hugging Face's renderer says what is right, and calls go round."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tool_calls import TEMPLATES, TOOLS, Matcher, parse, parse_in_all_ways

from openai_local.chat.parser import visible_tokens
from openai_local.chat.reasoning import Thought
from openai_local.chat.template import ChatTemplate, TemplateError
from openai_local.chat.tool_formats import ToolFormat

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
each_template = pytest.mark.parametrize("name", NAMES or ["none"])

# How the tool syntax of each is found: read off the template unless it is here.
FAMILIES = {
    "HuggingFaceTB-SmolLM3-3B": "hermes",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2",
    "MiniMax-M3": "minimax_m3",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek",
    "google-gemma-4-31B-it-interleaved": "gemma",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "llama-cpp-rwkv-world": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama",
    "meta-llama-Llama-3.3-70B-Instruct": "llama",
    "microsoft-Phi-3.5-mini-instruct": "hermes",
    "openai-gpt-oss-120b": "harmony",
}

# What Hugging Face refuses: a template that changes a list of its own, one that makes JSON of an
# iterator. Here they are rendered.
ONLY_HERE = {
    "Kimi-K2-Instruct": "append",
    "Kimi-K2-Thinking": "append",
    "llama-cpp-deepseek-r1": "generator",
}

# Nemotron Nano takes "/think" out of what users say.
TAKEN_OUT = {"</think>"}

USER = {"role": "user", "content": "Is it warmer in Paris than 20°, and what is 1 + 2.5?"}
CALLS = [
    ("get_weather", {"city": 'Paris, "F" <b> & \nline', "days": 3}),
    ("add", {"numbers": [1, 2.5], "exact": True}),
]


def template_of(name: str) -> ChatTemplate:
    if name == "none":
        pytest.skip("no templates beside this repository")
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, bos_token="<BOS>", eos_token="<EOS>")


def called(n: int) -> dict[str, Any]:
    """An answer with the first ``n`` calls, as OpenAI's clients send it back."""
    calls = [
        {
            "id": f"call_{i}_of_a_longish_id",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for i, (name, arguments) in enumerate(CALLS[:n])
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(i: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{i}_of_a_longish_id", "content": f"result-{i}"}


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "plain": (
        [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Why?"},
        ],
        False,
    ),
    "tools": ([{"role": "system", "content": "Be brief."}, USER], True),
    "call": ([USER, called(1), result(0)], True),
    "calls": (
        [USER, called(2), result(0), result(1), {"role": "assistant", "content": "Yes."}, USER],
        True,
    ),
    "words": ([USER, {**called(1), "content": "I look."}, result(0)], True),
    "thoughts": ([USER, {**called(1), "reasoning_content": "I know."}, result(0)], True),
}


def by_hugging_face(
    source: str, context: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered: str = utils._compile_jinja_template(source).render(**context)
    return rendered


@each_template
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": True, "reasoning_effort": "high"}])
def test_a_prompt_is_what_hugging_face_makes_of_it(
    name: str, conversation: str, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = template_of(name)
    messages, with_tools = CONVERSATIONS[conversation]
    tools = TOOLS if with_tools else None
    prompt = template.render(messages, tools=tools, kwargs=kwargs).text
    context = template.context(
        template.adapt(messages, tools), template.adapt_tools(tools), True, kwargs
    )
    context["datetime"] = re.search(r"Today is (.*)\.", prompt)[1] if "Today is " in prompt else ""
    try:
        expected = by_hugging_face(template.source, context, monkeypatch)
    except Exception as error:
        assert ONLY_HERE[name] in str(error)
        return
    assert prompt == expected


@each_template
def test_a_prompt_has_in_it_all_that_was_said(name: str) -> None:
    template = template_of(name)
    messages, _ = CONVERSATIONS["calls"]
    prompt = template.render([{"role": "system", "content": "Be brief."}, *messages], tools=TOOLS)
    for said in ("Be brief.", "warmer in Paris", "get_weather", "numbers", "result-0", "result-1"):
        assert said in prompt.text
    assert prompt.text.count("2.5") >= 3, "the second call is there, too"
    assert "I look." in template.render(CONVERSATIONS["words"][0], tools=TOOLS).text


@each_template
def test_its_tool_syntax_is_read_off_or_of_a_family(name: str) -> None:
    found = template_of(name).tool_format
    assert found is not None
    assert found.name == FAMILIES.get(name, "derived")


def outputs(template: ChatTemplate) -> Iterator[tuple[ToolFormat, str, str, int]]:
    """Format, prompt, what the model would write to call, and how many calls those are."""
    found = template.tool_format
    assert found is not None
    prompt = template.render([USER], tools=TOOLS).text
    reasoning = template.reasoning_format
    state = reasoning.state(prompt) if reasoning else Thought.NONE
    lead = "I know.\n" + reasoning.end if reasoning and state is Thought.OPEN else ""
    parallel = template.traits.parallel_tool_calls or not template.traits.tool_calls
    for n in (1, 2) if parallel else (1,):
        text = found.write(CALLS[:n], ["callid001", "callid002"])
        yield found, prompt, lead + text.removeprefix(_given(prompt, text)), n


def _given(prompt: str, text: str) -> str:
    """Of ``text``, what the prompt ends in."""
    return next((text[:n] for n in range(8, 0, -1) if prompt.endswith(text[:n])), "")


@each_template
def test_a_call_is_written_as_the_template_renders_it(name: str) -> None:
    template = template_of(name)
    for found, _, _, n in outputs(template):
        if name == "deepseek-ai-DeepSeek-R1-Distill-Llama-8B" and n == 1:
            continue  # it does not close a single one
        rendered = template.render([USER, called(n)], tools=TOOLS, add_generation_prompt=False)
        ids = [call["id"] for call in template.adapt([USER, called(n)], None)[1].get(
            "tool_calls", [{"id": "a"}, {"id": "b"}])]  # fmt: skip
        written = "".join(found.write(CALLS[:n], ids).split())
        assert written in "".join(rendered.text.split())


@each_template
def test_a_call_comes_back_however_the_stream_is_cut(name: str) -> None:
    template = template_of(name)
    for found, prompt, text, n in outputs(template):
        options = {
            "tool_format": found,
            "reasoning": template.reasoning_format,
            "prompt": prompt,
        }
        message = parse_in_all_ways(text, **options)
        assert message.objects == CALLS[:n]
        assert message.content == ""
        assert message.reasoning == ("I know." if text.startswith("I know.") else "")


@each_template
def test_no_call_no_difference(name: str) -> None:
    template = template_of(name)
    for found, prompt, text, _ in outputs(template):
        lead = text.partition(found.write(CALLS[:1])[:3])[0] if text.startswith("I know.") else ""
        said = {"harmony": "<|channel|>final<|message|>", "functionary": "all\n"}
        answer = 'Yes: <b>20</b> [1] {"a": 1} > 3 é 漢 </end> \n'
        message = parse_in_all_ways(
            lead + said.get(found.name, "") + answer,
            tool_format=found,
            reasoning=template.reasoning_format,
            prompt=prompt,
        )
        assert message.content == answer
        assert message.calls == []


def specials_of(template: ChatTemplate) -> list[str]:
    """What could be special tokens in the model's syntax."""
    found, reasoning = template.tool_format, template.reasoning_format
    markers = [*found.markers, *(reasoning.markers if reasoning else ())] if found else []
    tags = r"<[^<>\s\"=]+>|\[/?[A-Z_]+\]|\]<\]minimax\[>\[|<\|\"\|>"
    return sorted({tag for marker in markers for tag in re.findall(tags, marker)})


@each_template
@pytest.mark.parametrize("special", [False, True], ids=["bytes", "tokens"])
def test_the_grammar_takes_calls_and_nothing_beside_them(name: str, special: bool) -> None:
    template = template_of(name)
    matcher = Matcher(specials_of(template) if special else [])
    reasoning = template.reasoning_format
    for found, prompt, text, n in outputs(template):
        thought = reasoning.state(prompt) if reasoning else Thought.NONE
        for required in (True, False):
            grammar = found.grammar(
                TOOLS, required=required, parallel=n > 1, special=matcher.special,
                reasoning=reasoning, thought=thought,
            )  # fmt: skip
            assert matcher.matched(grammar, text) == (text, True)
            wrong_name = text.replace("get_weather", "get_wether")
            taken, _ = matcher.matched(grammar, wrong_name)
            assert taken.endswith("get_we"), "a wrong name ends at its first wrong letter"
            wrong_type = text.replace(": 3", ': "x').replace(":3", ':"x').replace("3", "x", 1)
            taken, _ = matcher.matched(grammar, wrong_type)
            assert taken != wrong_type
            assert wrong_type.startswith(taken)
            if n == 2:
                second = text.replace("numbers", "integers")
                taken, _ = matcher.matched(grammar, second)
                assert taken != second, "the second call is bound, too"
                assert second.startswith(taken)
                assert len(taken) > len(text) // 3
            else:
                taken, _ = matcher.matched(grammar, text + text)
                assert not taken.startswith(text + text[:40]), "one call is enough"
        if n == 2:
            single = found.grammar(
                TOOLS, required=True, parallel=False, special=matcher.special,
                reasoning=reasoning, thought=thought,
            )  # fmt: skip
            assert not matcher.accepts(single, text)


@each_template
@pytest.mark.parametrize("special", [False, True], ids=["bytes", "tokens"])
def test_the_grammar_leaves_other_text_free(name: str, special: bool) -> None:
    template = template_of(name)
    matcher = Matcher(specials_of(template) if special else [])
    reasoning = template.reasoning_format
    for found, prompt, text, _ in outputs(template):
        grammar = found.grammar(
            TOOLS, required=False, parallel=True, special=matcher.special,
            reasoning=reasoning, thought=reasoning.state(prompt) if reasoning else Thought.NONE,
        )  # fmt: skip
        lead = text[: text.index(reasoning.end) + len(reasoning.end)] if (
            reasoning and text.startswith("I know.")) else ""  # fmt: skip
        said = {"harmony": "<|channel|>final<|message|>", "functionary": "all\n"}
        answer = 'Yes: <b>20</b> [1] ]<] {"a": 1} > 3 < 4 é 漢 \U0001f600 </end> \n\n'
        assert matcher.accepts(grammar, lead + said.get(found.name, "") + answer)


@each_template
def test_marks_that_are_control_tokens_are_asked_for(name: str) -> None:
    template = template_of(name)
    found = template.tool_format
    assert found is not None
    control = [
        "<|im_end|>",
        "<|tool_call>",
        "<|channel|>",
        "[TOOL_CALLS]",
        "<｜tool▁calls▁begin｜>",
    ]
    seen = visible_tokens([found, template.reasoning_format], control)
    assert seen == {t for t in control if any(t in m for m in found.markers)} | {
        t for t in control if template.reasoning_format
        if any(t in m for m in template.reasoning_format.markers)
    }  # fmt: skip


@each_template
def test_a_final_message_is_continued_where_it_ends(name: str) -> None:
    template = template_of(name)
    messages = [USER, {"role": "assistant", "content": "It is 20° in"}]
    prompt = template.render(messages, continue_final_message=True).text
    assert prompt.endswith("It is 20° in")


@each_template
def test_what_a_user_types_is_never_a_control_token(name: str) -> None:
    source = template_of(name).source
    control = sorted(set(re.findall(r"<\|?[^<>\s'\"{}]+>|\[/?[A-Z_]+\]", source)) - TAKEN_OUT)
    template = ChatTemplate(source, bos_token="<BOS>", eos_token="<EOS>", control_tokens=control)
    typed = "".join(control)
    messages = [
        {"role": "user", "content": f"a {typed} b"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Why?"},
    ]
    prompt = template.render(messages)
    plain = [segment.text for segment in prompt.segments if not segment.trusted]
    assert "".join(plain) == typed
    assert prompt.text == template_of(name).render(messages).text, "marks change nothing"


def test_templates_refuse_in_their_own_words() -> None:
    template = template_of(NAMES and "mistralai-Ministral-3-14B-Reasoning-2512" or "none")
    with pytest.raises(TemplateError, match="alternate user and assistant roles"):
        template.render([USER, USER])


def test_thoughts_that_a_prompt_opens_are_seen() -> None:
    template = template_of(NAMES and "Qwen3.5-4B" or "none")
    prompt = template.render([USER], kwargs={"enable_thinking": True}).text
    message = parse(
        "I know.\n</think>\n\nYes.",
        tool_format=template.tool_format,
        reasoning=template.reasoning_format,
        prompt=prompt,
    )
    assert (message.reasoning, message.content) == ("I know.", "Yes.")
