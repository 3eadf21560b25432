"""Every framework's example on a real socket, and projects made by the README's lines."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from hosts import CHAT, ROOT, check, faked, host_process
from servers import client_at

EXAMPLES = ROOT / "examples"
README = ROOT / "README.md"
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


def run_python(*command: str, cwd: Path, **variables: str) -> str:
    """What a script prints; it must end well."""
    env = {**os.environ, **faked(), **variables}
    ran = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("server", "example"), [("uvicorn", "asgi_app"), ("hypercorn", "quart_app")]
)
def test_the_middlewares_hosts_keep_their_own_pages(server: str, example: str) -> None:
    port = "--port {port}" if server == "uvicorn" else "--bind 127.0.0.1:{port}"
    with host_process(f"{server} examples.{example}:app {port}") as running:
        check(f"{running.url}/v1")
        with client_at(running.url) as client:
            assert "This is the host" in client.get("/").text
            assert '"error"' not in client.get("/v1x").text


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


DJANGO_SETTINGS = """
import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.test import override_settings

settings.configure(OPENAI_LOCAL={}, SECRET_KEY="x")
django.setup()
import openai_local.django as ours

def refused(**given):
    try:
        with override_settings(OPENAI_LOCAL=given):
            ours.get_asgi_application()
    except ImproperlyConfigured as error:
        return str(error)

assert "'n_ctx' must be 'N_CTX'" in refused(n_ctx=99)
assert "n_contxt" in refused(N_CONTXT=99)
assert "n_ctx" in refused(N_CTX="many")
assert "prefix" in refused(PREFIX="/")
assert "PREFIX: str is wanted, not 5" in refused(PREFIX=5)
assert "WARM: bool is wanted, not 'no'" in refused(WARM="no")
assert "AUTH: No module named 'nope'" in refused(AUTH="nope.check")
assert "AUTH: os.sep: authorize: a function" in refused(AUTH="os.sep")
assert "authorize: a function" in refused(AUTH=5)
for given in (None, ["MODEL"], {5: 1}):
    try:
        with override_settings(OPENAI_LOCAL=given):
            ours.app()
        raise SystemExit(given)
    except ImproperlyConfigured:
        pass
with override_settings(OPENAI_LOCAL={"PREFIX": "ai", "N_CTX": 99, "WARM": False}):
    made = ours.get_asgi_application()
    own = ours.app()
    assert ours.get_asgi_application(own).local is own
assert (made.prefix, made.local.settings.n_ctx) == ("/ai", 99)

class User:
    def __init__(self, is_authenticated, is_staff):
        self.is_authenticated, self.is_staff = is_authenticated, is_staff

class Request:
    method, META, COOKIES, is_secure = "GET", {}, {}, lambda self: False
    def __init__(self, *user):
        self.user = User(*user)

assert not ours.staff(Request(False, False)) and ours.staff(Request(True, True))
try:
    ours.staff(Request(True, False))
except PermissionDenied:
    print("denied")
"""


def test_djangos_settings_are_read_in_its_own_way_and_mistakes_named(tmp_path: Path) -> None:
    assert run_python("-c", DJANGO_SETTINGS, cwd=tmp_path) == "denied\n"


DJANGO_CONNECTIONS = """
import asyncio, threading
import django, httpx
from django.conf import settings

settings.configure(
    SECRET_KEY="x",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
    OPENAI_LOCAL={},
)
django.setup()
from django.core.exceptions import DisallowedHost
from django.db import connection, connections
from django.test import override_settings
import openai_local.django as ours

used = []
both = threading.Barrier(2, timeout=10)

def check(request):
    connection.cursor().execute("select 1")
    used.append(connections["default"])
    both.wait()
    return True

async def acheck(request):
    return request.headers["x-name"] == "ada"

async def ask(n, auth, headers={}):
    with override_settings(OPENAI_LOCAL={"AUTH": auth}):
        transport = httpx.ASGITransport(ours.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        answers = await asyncio.gather(*(client.get("/models", headers=headers) for _ in range(n)))
        return [answer.status_code for answer in answers]

assert asyncio.run(ask(2, check)) == [200, 200]
assert len(set(map(id, used))) == 2
assert [each.connection for each in used] == [None, None]
assert asyncio.run(ask(1, acheck, {"x-name": "ada"})) == [200]
assert asyncio.run(ask(1, acheck, {"x-name": "bob"})) == [401]
def elsewhere(request):
    raise DisallowedHost("evil.example")

assert asyncio.run(ask(1, elsewhere)) == [400]
# A coroutine is true, whoever it is about.
assert asyncio.run(ask(1, lambda request: acheck(request), {"x-name": "bob"})) == [401]
print("closed")
"""


def test_djangos_connections_are_closed_after_each_check_and_checks_do_not_wait(
    tmp_path: Path,
) -> None:
    assert run_python("-c", DJANGO_CONNECTIONS, cwd=tmp_path) == "closed\n"


DJANGO_EARLY = """
import os
from django.apps import apps
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import openai_local.django
local = openai_local.django.app()
assert not apps.ready
application = openai_local.django.get_asgi_application(local)
assert apps.ready and application.local is local
print("set up")
"""


def test_the_application_can_be_made_before_django_is_set_up(tmp_path: Path) -> None:
    # Its AUTH imports Django's users.
    assert run_python("-c", DJANGO_EARLY, cwd=EXAMPLES / "django_site") == "set up\n"


def check_page(client: httpx.Client, csrf: str) -> None:
    """A page of the site, whose browser sends the session's cookie and, where told, the token."""
    assert client.get("/v1/models").status_code == 200
    headers = {"x-csrftoken": csrf}
    answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 200, answer.text


def block(page: Path, language: str, having: str) -> str:
    """The fenced block of a page in which ``having`` is."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return next(text for text in blocks if having in text)


def commands(page: Path, having: str) -> list[list[str]]:
    """The lines of a block for the shell, but for what installs, which make does."""
    lines = block(page, "sh", having).splitlines()
    return [shlex.split(line, comments=True) for line in lines if not line.startswith("pip ")]


def serve_literally(page: Path, having: str, folder: Path) -> None:
    """Runs the last line of a block, a uvicorn, on a port of ours."""
    *_, (server, *arguments) = commands(page, having)
    assert server == "uvicorn"
    with host_process(f"uvicorn {' '.join(arguments)} --port {{port}}", folder) as running:
        check(f"{running.url}/v1")
        with client_at(running.url) as client:
            assert client.get("/nothing").status_code == 404
            assert "openai" not in client.get("/nothing").text


def test_a_fastapi_project_made_of_the_readmes_lines(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(block(README, "python", "app.mount"))
    serve_literally(README, "uvicorn main:app", tmp_path)


def django_project(tmp_path: Path) -> Path:
    """What the page's commands make, with its one changed line."""
    change = block(README, "diff", "get_asgi_application")
    assert change == block(HOSTING, "diff", "get_asgi_application")
    folder = tmp_path
    for command in commands(HOSTING, "startproject"):
        if command[0] == "cd":
            folder = folder / command[1]
        else:
            assert command[0] == "django-admin"
            run_python("-m", "django", *command[1:], cwd=folder)
    program = folder / "mysite" / "asgi.py"
    source = program.read_text()
    before, after = change.splitlines()
    assert (before[0], after[0]) == ("-", "+")
    assert source.count(before[1:]) == 1
    program.write_text(source.replace(before[1:], after[1:]))
    return folder


def test_a_django_project_made_of_the_readmes_lines(tmp_path: Path) -> None:
    serve_literally(HOSTING, "uvicorn mysite", django_project(tmp_path))


VIEWS = """
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from mysite.model import local

def plain(request):
    return HttpResponse(local.sync_engine.chat("hello", max_tokens=12).text)

async def later(request):
    return HttpResponse((await local.engine.chat("hello", max_tokens=12)).text)

async def stream(request):
    async def pieces():
        async with local.engine.stream_chat("hello", max_tokens=12) as stream:
            async for chunk in stream:
                yield chunk.text
    return StreamingHttpResponse(pieces())

urlpatterns = [path("plain", plain), path("later", later), path("stream", stream)]
"""


def test_djangos_runserver_with_daphne_and_views_that_ask_the_model(tmp_path: Path) -> None:
    folder = django_project(tmp_path)
    site = folder / "mysite"
    (site / "model.py").write_text(block(HOSTING, "python", "django.app()"))
    program = (site / "asgi.py").read_text()
    own = "from mysite.model import local\n\napplication = get_asgi_application(local)"
    (site / "asgi.py").write_text(program.replace("application = get_asgi_application()", own))
    (site / "urls.py").write_text(VIEWS)
    settings = (site / "settings.py").read_text()
    apps = "INSTALLED_APPS = ["
    settings = settings.replace(apps, f"{apps}'daphne', ")
    (site / "settings.py").write_text(settings + 'ASGI_APPLICATION = "mysite.asgi.application"\n')
    command = "django runserver --noreload --settings mysite.settings {port}"
    with host_process(command, folder) as running:
        check(f"{running.url}/v1")
        with client_at(running.url) as client:
            for page in ("/plain", "/later", "/stream"):
                answer = client.get(page)
                assert (answer.status_code, len(answer.text)) == (200, 12), answer.text
