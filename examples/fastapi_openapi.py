"""A FastAPI application whose own documentation, at /docs, has the model's routes, too.

pip install fastapi; then: uvicorn examples.fastapi_openapi:app
"""

from typing import Any

from fastapi import FastAPI

import openai_local

local = openai_local.app()
app = FastAPI(lifespan=local.lifespan)
app.mount("/v1", local)
of_host = app.openapi


def openapi() -> dict[str, Any]:
    return openai_local.merge_openapi(of_host(), local, "/v1")


app.openapi = openapi
