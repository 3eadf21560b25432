"""OpenAI's own client: a chat, an answer parsed by its schema, a stream with a tool call.

pip install openai; then: python examples/clients/openai_python.py http://127.0.0.1:8000/v1
"""

import sys
from typing import Literal

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Weather(BaseModel):
    city: Literal["Paris", "Rome"]
    metric: bool


client = OpenAI(base_url=sys.argv[1], api_key="none")
question = {"role": "user", "content": "How is the weather in Rome?"}
chat = {"model": client.models.list().data[0].id, "messages": [question]}
print(client.chat.completions.create(**chat, max_tokens=16).choices[0].message.content)
parsed = client.chat.completions.parse(**chat, response_format=Weather)
print("parsed:", parsed.choices[0].message.parsed.model_dump_json())
tools = {"tools": [pydantic_function_tool(Weather)], "parallel_tool_calls": False}
with client.chat.completions.stream(**chat, **tools, tool_choice="required") as stream:
    for event in stream:
        print("event:", event.type)
    call = stream.get_final_completion().choices[0].message.tool_calls[0].function
print("called:", call.name, call.parsed_arguments.model_dump_json())
