"""A FastAPI application with a local model at /v1.

pip install fastapi; then: uvicorn examples.fastapi_app:app
"""

from fastapi import FastAPI

import openai_local

local = openai_local.app()  # or a file: openai_local.app("model.gguf")
app = FastAPI(lifespan=local.lifespan)  # optional: warm before the first request
app.mount("/v1", local)


@app.get("/")
async def index() -> dict[str, str]:
    return {"message": "This is the host; the model answers at /v1."}
