"""Every framework's example on a real socket, and projects made by the README's lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hosts import CHAT, ROOT, check, faked, host_process
from servers import client_at

EXAMPLES = ROOT / "examples"
HOSTING = ROOT / "docs" / "hosts.md"

# What `manage.py migrate` and `createsuperuser` do, in one process.
NEW_DATABASE = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
call_command("migrate", verbosity=0)
User.objects.create_user("ada", password="pass")
"""


def run_python(*command: str, cwd: Path, **variables: str) -> None:
    """A script that must end well."""
    env = {**os.environ, **faked(), **variables}
    ran = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("server", "example"), [("uvicorn", "asgi_app"), ("hypercorn", "quart_app")]
)
def test_the_middlewares_hosts_keep_their_own_pages(server: str, example: str) -> None:
    port = "--port {port}" if server == "uvicorn" else "--bind 127.0.0.1:{port}"
    with host_process(f"{server} examples.{example}:app {port}") as running:
        check(f"{running.url}/v1")
        with client_at(running.url) as client:
            assert "This is the host" in client.get("/").text
            assert client.get("/v1x").status_code in (200, 404)


def test_a_guard_of_litestar_stands_in_front_of_its_mount() -> None:
    command = "uvicorn examples.litestar_app:app --port {port}"
    with host_process(command, health="/") as running:
        check(f"{running.url}/v1", {"x-team": "ours"})
        with client_at(running.url) as client:
            assert client.get("/v1/models").status_code == 401
            document = client.get("/v1/openapi.json", headers={"x-team": "ours"}).json()
            assert document["servers"] == [{"url": "/v1"}]


def test_a_dependency_of_fastapi_stands_in_front_of_its_mount() -> None:
    ada = {"authorization": "Bearer secret-of-ada"}
    with host_process("uvicorn examples.fastapi_auth:app --port {port}") as running:
        check(f"{running.url}/v1", ada)
        with client_at(running.url) as client:
            stranger = client.post("/v1/chat/completions", json=CHAT)
            assert client.get("/me", headers=ada).json() == {"name": "ada"}
            assert client.get("/me").status_code == 401
    assert stranger.status_code == 401
    assert stranger.json()["error"]["message"] == "Who are you?"


def test_django_with_its_sessions_tokens_and_csrf_in_front(tmp_path: Path) -> None:
    site = EXAMPLES / "django_site"
    variables = {"DATABASE": str(tmp_path / "db.sqlite3")}
    run_python("-c", NEW_DATABASE, cwd=site, **variables)
    command = "uvicorn mysite.asgi:application --port {port}"
    with host_process(command, site, **variables) as running, client_at(running.url) as client:
        stranger = client.post("/v1/chat/completions", json=CHAT)
        csrf = client.get("/").json()["csrf"]
        form = {"username": "ada", "password": "pass"}
        page = client.post("/login/", data=form, headers={"x-csrftoken": csrf}).json()
        assert page["user"] == "ada"
        forged = client.post("/v1/chat/completions", json=CHAT)
        check_page(client, page["csrf"])
        token = client.get("/token/").json()["token"]
        check(f"{running.url}/v1", {"authorization": f"Bearer {token}"})
        wrong = client.get("/v1/models", headers={"authorization": "Bearer x"})
        assert "Traceback" not in running.output
    assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "unauthorized")
    assert forged.status_code == 403
    assert "X-CSRFToken" in forged.json()["error"]["message"]
    assert wrong.status_code == 401


def check_page(client: httpx.Client, csrf: str) -> None:
    """A page of the site, whose browser sends the session's cookie and, where told, the token."""
    assert client.get("/v1/models").status_code == 200
    headers = {"x-csrftoken": csrf}
    answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 200, answer.text
