"""A host for servers' processes, with /v1 mounted. It writes what becomes of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import openai_local

VERSION = 1
local = openai_local.app()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with local.lifespan():
        say("started")
        yield
    say("stopped")


async def about(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{VERSION} {os.getpid()}")


def say(what: str) -> None:
    # In one piece: several processes write to one file.
    os.write(2, f"{what} {os.getpid()}\n".encode())


app = Starlette(routes=[Route("/about", about), Mount("/v1", local)], lifespan=lifespan)
say("imported")
