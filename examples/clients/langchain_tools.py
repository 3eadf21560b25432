"""LangChain: a tool call that the model must make, and an answer as a pydantic model.

pip install langchain-openai; python examples/clients/langchain_tools.py http://127.0.0.1:8000/v1
"""

import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Weather(BaseModel, extra="forbid"):
    """The weather that somebody asks for."""

    city: Literal["Paris", "Rome"]
    metric: bool


model = ChatOpenAI(base_url=sys.argv[1], api_key="none", model="smollm2-135m-instruct")
question = "How is the weather in Rome?"
print("".join(str(chunk.content) for chunk in model.stream(question, max_tokens=16)))
bound = model.bind_tools([Weather], tool_choice="required", parallel_tool_calls=False)
(call,) = bound.invoke(question).tool_calls
print("called:", call["name"], Weather(**call["args"]).model_dump_json())
print("structured:", model.with_structured_output(Weather).invoke(question).model_dump_json())
