"""GET /openapi.json and /docs, without a key, unless the settings have neither.

The page is made here and asks nobody for anything: hosts are often offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from html import escape
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from openai_local.api.generation import INLINE_CHARS, off_loop
from openai_local.routes import openapi
from openai_local.routes.errors import HttpRefusal
from openai_local.routes.services import Services

HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; padding: .3rem 0 } code, b { font-family: ui-monospace, monospace }
table { border-collapse: collapse; margin: .5rem 0 1rem } td { padding: .1rem .8rem .1rem 0;
vertical-align: top } :root { color-scheme: light dark }
"""

IN_A_PATH = "/:@!$&'()*+,;="  # beside what quote leaves alone: RFC 3986's pchar

Json = dict[str, Any]


async def document(services: Services, request: Request) -> ASGIApp:
    content = await _made(services, request, "/openapi.json", _json)
    return Response(content, media_type="application/json")


async def page(services: Services, request: Request) -> ASGIApp:
    return HTMLResponse(await _made(services, request, "/docs", _html), headers=HEADERS)


async def _made(
    services: Services, request: Request, path: str, make: Callable[[bool, str], bytes]
) -> bytes:
    if not services.settings.docs:
        raise HttpRefusal(f"Unknown request URL: GET {request.url.path}.", 404, "unknown_url")
    needs_key, server = services.settings.api_key is not None, _base(request, path)
    return await off_loop(INLINE_CHARS + 1, lambda: make(needs_key, server))


# Nobody needs a key for them, so that they must cost next to nothing.
@lru_cache(maxsize=8)
def _json(needs_key: bool, server: str) -> bytes:
    return to_json(openapi.document(needs_key=needs_key, server=server))


@lru_cache(maxsize=8)
def _html(needs_key: bool, server: str) -> bytes:
    return _page(openapi.document(needs_key=needs_key, server=server)).encode()


def _base(request: Request, path: str) -> str:
    """Where the application is mounted, as its clients write it."""
    return quote(str(request.scope["path"]).removesuffix(path), safe=IN_A_PATH) or "/"


def _page(whole: Json) -> str:
    title = escape(f"{whole['info']['title']} {whole['info']['version']}")
    server = whole["servers"][0]["url"].rstrip("/")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<style>{STYLE}</style><h1>{title}</h1>",
        f"<p>{escape(whole['info']['description'])} As a document for programs:"
        f' <a href="{escape(server)}/openapi.json">openapi.json</a>.</p><h2>Routes</h2>',
    ]
    for path, item in whole["paths"].items():
        for method, operation in item.items():
            parts += _operation(method, server + path, operation)
    parts.append("<h2>Types</h2>")
    for name, schema in whole["components"]["schemas"].items():
        parts.append(f'<details id="{escape(name)}"><summary><b>{escape(name)}</b></summary>')
        parts += [*_fields(schema), "</details>"]
    return "\n".join(parts) + "</html>"


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"<details><summary><b>{method.upper()} {escape(path)}</b>"
    yield f" {escape(operation['summary'])}</summary>"
    if operation["security"]:
        yield "<p>Needs a bearer key.</p>"
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        yield f"<p>Body: {_type(schema)}</p>"
        yield from _fields(schema)
    for kind, content in operation["responses"]["200"]["content"].items():
        schema = content["schema"]
        events = schema.get("x-itemSchema")
        said = escape(schema.get("description", "")) if events else ""
        yield f"<p><code>{kind}</code>: {_type(events or schema)} {said}</p>"
    errors = [status for status in operation["responses"] if status != "200"]
    yield f"<p>Errors: {', '.join(errors)}, as {_type({'$ref': '/Error'})}</p></details>"


def _fields(schema: Json) -> Iterator[str]:
    if schema.get("description"):
        yield f"<p>{escape(schema['description'])}</p>"
    yield "<table>"
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        need = "required" if name in required else ""
        why = escape(field.get("description", ""))
        yield f"<tr><td><code>{escape(name)}</code><td>{_type(field)}<td>{need}{why}</tr>"
    yield "</table>"


def _type(schema: Json) -> str:
    """What a value may be, in a line."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(_type(branch) for branch in schema[union])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(f"<code>{escape(to_json(value).decode())}</code>" for value in values)
    kind = escape(str(schema.get("type", "anything")))
    if kind == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", "&gt;"), ("maximum", "≤"),
            ("exclusiveMaximum", "&lt;"),
        )
        if key in schema
    ]  # fmt: skip
    return f"{kind} {', '.join(bounds)}".strip()
