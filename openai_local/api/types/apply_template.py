"""The body of POST /apply-template: a chat's, of which only the prompt is made."""

from __future__ import annotations

from openai_local.api.types.chat_completions import ChatCompletionRequest


class TemplateRequest(ChatCompletionRequest):
    """What decides only how the chat would go on is taken, and does nothing."""

    model: str = ""
