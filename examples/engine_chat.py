"""Chats in Python without HTTP: two at once in one batch, a stream, and vectors.

python examples/engine_chat.py
"""

import asyncio

import openai_local


async def main() -> None:
    async with openai_local.Engine(n_ctx=2048) as engine:
        questions = ["What is the capital of France?", "What is the capital of Italy?"]
        for answer in await asyncio.gather(*(engine.chat(q, max_tokens=16) for q in questions)):
            print(answer.text, answer.usage.completion_tokens)
        async with engine.stream_chat("Tell me a story.", max_tokens=24, seed=1) as stream:
            async for chunk in stream:
                print(chunk.text, end="", flush=True)
        vectors = await engine.embed(["a cat", "a kitten", "a tax form"])
        print("\nsimilar:", vectors[0] @ vectors[1] > vectors[0] @ vectors[2])


if __name__ == "__main__":
    asyncio.run(main())
