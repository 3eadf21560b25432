"""A FastAPI view that asks the model of its own application, by OpenAI's client and without.

pip install fastapi openai; then: uvicorn examples.fastapi_chat:app
"""

from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import openai_local

local = openai_local.app()
client = openai_local.client(local)  # OpenAI's own, without a socket
app = FastAPI(lifespan=local.lifespan)
app.mount("/v1", local)


@app.get("/summary")
async def summary(text: str) -> dict[str, str | None]:
    question = f"Say in one sentence: {text}"
    answer = await client.chat.completions.create(
        model="smollm2-135m-instruct", messages=[{"role": "user", "content": question}]
    )
    return {"summary": answer.choices[0].message.content}


@app.get("/story")
async def story(about: str) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        async with local.engine.stream_chat(f"A short story about {about}.") as stream:
            async for chunk in stream:
                yield chunk.text

    return StreamingResponse(pieces(), media_type="text/plain")
