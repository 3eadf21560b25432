"""A script without an event loop: an answer that has a schema, and a stream.

python examples/script.py
"""

from typing import Literal

from pydantic import BaseModel

import openai_local


class Weather(BaseModel):
    city: Literal["Paris", "Rome"]
    sunny: bool


with openai_local.SyncEngine(n_ctx=2048) as engine:
    answer = engine.chat("How is the weather in Rome?", response_format=Weather)
    print(Weather.model_validate_json(answer.text))
    for chunk in engine.stream_chat("Tell me a story.", max_tokens=24):
        print(chunk.text, end="", flush=True)
    print()
