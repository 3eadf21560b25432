"""Instructor: pydantic models from a chat, by tool calls and by JSON schema.

pip install instructor; then: python examples/clients/instructor_models.py http://127.0.0.1:8000/v1
"""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Weather(BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome"]
    metric: bool


openai = OpenAI(base_url=sys.argv[1], api_key="none")
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai, mode=mode)
    weather = client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": "How is the weather in Rome?"}],
        response_model=Weather,
        max_retries=0,
    )
    print(f"{mode.name}:", weather.model_dump_json())
