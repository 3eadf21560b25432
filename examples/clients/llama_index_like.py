"""LlamaIndex's OpenAILike: a chat, a stream, and a pydantic model by a tool call.

pip install llama-index-llms-openai-like; then:
python examples/clients/llama_index_like.py http://127.0.0.1:8000/v1
"""

import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Weather(BaseModel, extra="forbid"):
    """The weather that somebody asks for."""

    city: Literal["Paris", "Rome"]
    metric: bool


kind = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 2048}
server = {"api_base": sys.argv[1], "api_key": "none", "model": "smollm2-135m-instruct"}
llm = OpenAILike(**server, **kind)
question = [ChatMessage(role="user", content="How is the weather in Rome?")]
print(llm.chat(question, max_tokens=16).message.content)
print("".join(piece.delta or "" for piece in llm.stream_chat(question, max_tokens=16)))
print("structured:", llm.as_structured_llm(Weather).chat(question).raw.model_dump_json())
