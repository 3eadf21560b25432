"""LiteLLM: a chat, a stream, an embedding, a tool call and a schema.

pip install litellm; then: python examples/clients/litellm_calls.py http://127.0.0.1:8000/v1
"""

import sys
from typing import Literal

import litellm
from pydantic import BaseModel


class Weather(BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome"]
    metric: bool


server = {"api_base": sys.argv[1], "api_key": "none", "model": "openai/smollm2-135m-instruct"}
chat = {**server, "messages": [{"role": "user", "content": "How is the weather in Rome?"}]}
print(litellm.completion(**chat, max_tokens=16).choices[0].message.content)
for chunk in litellm.completion(**chat, max_tokens=16, stream=True):
    print("chunk:", chunk.choices[0].delta.content)
print("dimensions:", len(litellm.embedding(**server, input=["Rome"]).data[0]["embedding"]))
function = {"name": "weather", "parameters": Weather.model_json_schema()}
tools = {"tools": [{"type": "function", "function": function}], "parallel_tool_calls": False}
called = litellm.completion(**chat, **tools, tool_choice="required").choices[0].message
print("called:", called.tool_calls[0].function.name, called.tool_calls[0].function.arguments)
print("schema:", litellm.completion(**chat, response_format=Weather).choices[0].message.content)
