"""Pydantic AI: an agent whose answer is a pydantic model, by tool call and by JSON schema.

pip install 'pydantic-ai-slim[openai]'; then:
python examples/clients/pydantic_ai_agent.py http://127.0.0.1:8000/v1
"""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Weather(BaseModel, extra="forbid"):
    city: Literal["Paris", "Rome"]
    metric: bool


provider = OpenAIProvider(base_url=sys.argv[1], api_key="none")
model = OpenAIChatModel("smollm2-135m-instruct", provider=provider)
for name, output in {"tool": Weather, "native": NativeOutput(Weather)}.items():
    result = Agent(model, output_type=output).run_sync("How is the weather in Rome?")
    print(f"{name}:", result.output.model_dump_json())
