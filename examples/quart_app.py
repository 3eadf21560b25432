"""A Quart application, which cannot mount, with a local model at /v1 in front of it.

pip install quart; then: hypercorn examples.quart_app:app
"""

from quart import Quart

import openai_local

app = Quart(__name__)
app.asgi_app = openai_local.Middleware(app.asgi_app, prefix="/v1")  # type: ignore[method-assign]


@app.get("/")
async def index() -> dict[str, str]:
    return {"message": "This is the host; the model answers at /v1."}
