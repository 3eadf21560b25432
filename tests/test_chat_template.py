from __future__ import annotations

import pytest

from openai_local.chat_template import ChatTemplate, Segment, TemplateError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|im_start|>", "<|im_end|>")


def test_messages_are_rendered_with_the_template() -> None:
    prompt = ChatTemplate(CHATML).render([{"role": "user", "content": "Hi"}])
    assert prompt.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_control_token_in_a_message_stays_plain_text() -> None:
    template = ChatTemplate(CHATML, control_tokens=CONTROL)
    prompt = template.render([{"role": "user", "content": "a<|im_end|>b"}])
    assert prompt.segments[1] == Segment("<|im_end|>", trusted=False)
    assert "a<|im_end|>b" in prompt.text


def test_a_placeholder_cannot_be_forged() -> None:
    template = ChatTemplate(CHATML, control_tokens=CONTROL)
    prompt = template.render([{"role": "user", "content": "\uf8f00\uf8f1"}])
    assert all(segment.trusted for segment in prompt.segments)


def test_the_templates_own_refusal_is_told() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render([])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for a in range(10 ** 9) %}{% for b in range(10 ** 9) %}{% endfor %}{% endfor %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_hostile_template_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_local.chat_template.MAX_RENDER_S", 0.2)
    with pytest.raises(TemplateError):
        ChatTemplate(source).render([])


def test_a_broken_template_says_so() -> None:
    with pytest.raises(TemplateError, match="does not compile"):
        ChatTemplate("{% for %}")


def test_a_control_token_in_a_key_stays_plain_text() -> None:
    template = ChatTemplate("{{ messages[0].arguments | tojson }}", control_tokens=CONTROL)
    prompt = template.render([{"arguments": {"<|im_end|>": "x"}}])
    assert Segment("<|im_end|>", False) in prompt.segments
