"""Who may come in: the host's word, beside the key, and pages of other origins if asked."""

from __future__ import annotations

from typing import Any

import pytest
from clients import MESSAGES, MODEL, client_of
from fakes import FakeBackend, fake_app
from fastapi import HTTPException as FastAPIHTTPException
from starlette.exceptions import HTTPException
from starlette.requests import Request

import openai_local
from openai_local.application import Application
from openai_local.engine import Engine
from openai_local.routes import ROUTES

pytestmark = pytest.mark.anyio

CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
PAGE = "https://page.example"


def guarded(authorize: Any, **options: Any) -> Application:
    settings = fake_app(**options).settings
    return Application(
        settings,
        lambda config: Engine(config, open_backend=lambda config, stopping: FakeBackend()),
        authorize=authorize,
    )


async def test_the_host_is_asked_where_a_key_would_be_and_before_the_body_is_read() -> None:
    asked: list[str] = []

    async def authorize(request: Request) -> bool:
        asked.append(request.url.path)
        return False

    app = guarded(authorize)
    async with client_of(app) as client:
        for row in ROUTES:
            path = row.path.replace("{id:path}", MODEL).replace("{engine:path}", "any")
            response = await client.request(row.method, path, content=b"not json")
            assert (response.status_code == 401) == row.needs_key, path
            if row.needs_key:
                assert response.json()["error"]["code"] == "unauthorized"
                assert asked.pop() == path
            assert not asked


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (HTTPException(403, "not you"), 403, "not you"),
        (FastAPIHTTPException(402, {"owed": 3}), 402, '{"owed":3}'),
        (HTTPException(401, "who?", {"WWW-Authenticate": "Basic"}), 401, "who?"),
        (ValueError("secret of the host"), 500, "internal error"),
    ],
)
async def test_what_the_host_raises_is_answered_in_openais_shape(
    error: Exception, status: int, message: str
) -> None:
    def authorize(request: Request) -> None:
        raise error

    async with client_of(guarded(authorize)) as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["message"]) == (status, message)
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    if status == 401:
        assert response.headers["www-authenticate"] == "Basic"


def yielding(request: Request) -> Any:
    yield None


async def yielding_later(request: Request) -> Any:
    yield None


@pytest.mark.parametrize("authorize", [yielding, yielding_later, "mysite.auth.check"])
async def test_what_would_let_in_by_being_called_is_refused_before_anybody_comes(
    authorize: Any,
) -> None:
    with pytest.raises(openai_local.ConfigError, match="authorize: a function"):
        guarded(authorize)


@pytest.mark.parametrize("generator", [yielding, yielding_later])
async def test_a_generator_in_which_nothing_has_run_lets_nobody_in(generator: Any) -> None:
    async with client_of(guarded(lambda request: generator(request))) as client:
        response = await client.get("/v1/models")
    assert response.status_code == 500


@pytest.mark.parametrize("is_async", [True, False])
async def test_whom_the_host_lets_in_needs_the_key_as_well_if_there_is_one(is_async: bool) -> None:
    async def later(request: Request) -> None:
        return None

    app = guarded(later if is_async else lambda request: None, api_key="secret")
    async with client_of(app) as client:
        without = await client.get("/v1/models")
        both = await client.post(
            "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer secret"}
        )
    await app.aclose()
    assert (without.status_code, without.json()["error"]["code"]) == (401, "invalid_api_key")
    assert both.status_code == 200


def preflight(origin: str = PAGE) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }


async def test_pages_of_other_origins_are_told_nothing_unless_asked() -> None:
    app = fake_app()
    async with client_of(app) as client:
        asked = await client.options("/v1/chat/completions", headers=preflight())
        answered = await client.get("/v1/models", headers={"origin": PAGE})
    assert asked.status_code == 405
    for response in (asked, answered):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", ["*", PAGE, f"https://other.example, {PAGE}", [PAGE]])
async def test_pages_of_the_origins_in_the_settings_may_call(origins: Any) -> None:
    app = fake_app(cors_origins=origins, api_key="secret")
    headers = {"origin": PAGE, "authorization": "Bearer secret"}
    async with client_of(app) as client:
        asked = await client.options("/v1/chat/completions", headers=preflight())
        body = {**CHAT, "stream": True}
        streamed = await client.post("/v1/chat/completions", json=body, headers=headers)
        # What is refused must be readable, too.
        refused = await client.get("/v1/models", headers={"origin": PAGE})
        missing = await client.get("/v1/nothing", headers={"origin": PAGE})
        stranger = await client.options("/v1/models", headers=preflight("https://evil.example"))
    await app.aclose()
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert streamed.text.endswith("[DONE]\n\n")
    for response, status in ((asked, 200), (streamed, 200), (refused, 401), (missing, 404)):
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] in ("*", PAGE)
        if response is not asked:
            assert response.headers["access-control-expose-headers"] == "*"
    if origins != "*":
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize(
    "origins", ["page.example", "https://page.example/", "https://a.example/x"]
)
def test_an_origin_that_no_browser_would_send_is_refused(origins: str) -> None:
    with pytest.raises(openai_local.ConfigError, match="cors_origins"):
        openai_local.app("m.gguf", cors_origins=origins)


def test_origins_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_LOCAL_CORS_ORIGINS", "https://a.example,https://b.example")
    origins = openai_local.app("m.gguf").settings.cors_origins
    assert origins == ("https://a.example", "https://b.example")
