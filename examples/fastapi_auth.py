"""A FastAPI application whose own dependency says who may use the model, too.

A mount runs no dependencies, so the same function is given to it as `authorize`.

pip install fastapi; then: uvicorn examples.fastapi_auth:app
"""

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request

import openai_local

USERS = {"Bearer secret-of-ada": "ada"}


async def user(request: Request) -> str:
    name = USERS.get(request.headers.get("authorization", ""))
    if name is None:
        raise HTTPException(401, "Who are you?")
    return name


local = openai_local.app(authorize=user)
app = FastAPI(lifespan=local.lifespan)
app.mount("/v1", local)


@app.get("/me")
async def me(name: Annotated[str, Depends(user)]) -> dict[str, str]:
    return {"name": name}
