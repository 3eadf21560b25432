"""Django's way in: the settings, ``asgi.py``, and Django's users in front. It alone knows Django.

In ``asgi.py``, in place of Django's own ``get_asgi_application``::

    from openai_local.django import get_asgi_application

    application = get_asgi_application()

and, if anything is not as it is by default, in the settings::

    OPENAI_LOCAL = {"MODEL": "model.gguf", "PREFIX": "/v1", "AUTH": "openai_local.django.logged_in"}
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable, iscoroutinefunction
from io import BytesIO
from typing import Any, TypeVar

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application as _django_application
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, SuspiciousOperation
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.module_loading import import_string
from starlette.exceptions import HTTPException
from starlette.requests import Request

import openai_local
from openai_local.application import Application
from openai_local.config import ConfigError
from openai_local.middleware import Middleware
from openai_local.routes.auth import Authorize, check_authorize

logger = logging.getLogger(__name__)

T = TypeVar("T")
Auth = Callable[[HttpRequest], Awaitable[Any] | Any]

# Settings that are of this module, not of openai_local.app().
PREFIX, AUTH, WARM = "PREFIX", "AUTH", "WARM"


def get_asgi_application(local: Application | None = None) -> Middleware:
    """Django's application, with the model's routes in front of it at ``PREFIX``.

    ``local`` is made of the settings, unless it was made by :func:`app` before.
    Raises ImproperlyConfigured, naming the setting.
    """
    django = _django_application()
    given = _settings()
    if given.get(AUTH) is not None:
        _imported(given[AUTH])
    try:
        return Middleware(
            django,
            _of_type(str, given, PREFIX, "/v1"),
            local=app() if local is None else local,
            warm=_of_type(bool, given, WARM, True),
        )
    except ConfigError as error:
        raise ImproperlyConfigured(f"OPENAI_LOCAL: {error}") from None


def app() -> Application:
    """The application that ``OPENAI_LOCAL`` describes.

    The keys are the settings of :func:`openai_local.app` in capitals, and ``AUTH``: a function,
    async or not, or its dotted path. It is called with Django's request, ``session`` and ``user``
    set, and lets it in by returning what is true; PermissionDenied is a 403, and all else a 401.
    A dotted path is imported when Django is set up, which it need not be here.

    Raises ImproperlyConfigured, naming the setting.
    """
    options = {name.lower(): value for name, value in _settings().items()}
    auth = options.pop(AUTH.lower(), None)
    for own in (PREFIX, WARM):
        options.pop(own.lower(), None)
    try:
        return openai_local.app(authorize=_authorize(auth), **options)
    except ConfigError as error:
        raise ImproperlyConfigured(f"OPENAI_LOCAL: {error}") from None


def logged_in(request: HttpRequest) -> bool:
    """For ``AUTH``: whoever is logged in.

    A page that posts must send the CSRF token, in the header ``X-CSRFToken``: a browser adds the
    session's cookie to other sites' requests, too. Raises PermissionDenied.
    """
    if not request.user.is_authenticated:
        return False
    check_csrf(request)
    return True


def staff(request: HttpRequest) -> bool:
    """For ``AUTH``: as :func:`logged_in`, but staff alone. Raises PermissionDenied."""
    if logged_in(request) and not request.user.is_staff:
        raise PermissionDenied("This is for staff.")
    return bool(request.user.is_authenticated)


def check_csrf(request: HttpRequest) -> None:
    """Raises PermissionDenied for a POST without the CSRF token in its header."""
    middleware = CsrfViewMiddleware(_nothing)
    middleware.process_request(request)
    if middleware.process_view(request, None, (), {}) is not None:
        raise PermissionDenied("The CSRF token is missing or wrong: send X-CSRFToken.")


def _settings() -> dict[str, Any]:
    given = getattr(settings, "OPENAI_LOCAL", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"OPENAI_LOCAL: a dictionary is wanted, not {given!r}")
    for name in given:
        if not isinstance(name, str) or name != name.upper():
            raise ImproperlyConfigured(f"OPENAI_LOCAL: {name!r} must be {str(name).upper()!r}")
    return dict(given)


def _of_type(kind: type[T], given: Mapping[str, Any], name: str, default: T) -> T:
    value = given.get(name, default)
    if not isinstance(value, kind):
        raise ImproperlyConfigured(
            f"OPENAI_LOCAL: {name}: {kind.__name__} is wanted, not {value!r}"
        )
    return value


def _imported(auth: Auth | str) -> Auth:
    """Raises ImproperlyConfigured."""
    if not isinstance(auth, str):
        return auth
    try:
        made: Auth = import_string(auth)
    except ImportError as error:
        raise ImproperlyConfigured(f"OPENAI_LOCAL: {AUTH}: {error}") from error
    try:
        check_authorize(made)
    except ConfigError as error:
        raise ImproperlyConfigured(f"OPENAI_LOCAL: {AUTH}: {auth}: {error}") from None
    return made


def _authorize(auth: Auth | str | None) -> Authorize | None:
    if auth is None:
        return None
    if not isinstance(auth, str):
        check_authorize(auth)

    async def authorize(request: Request) -> bool:
        # Imported no earlier, since it may import models, which wait for Django to be set up.
        check = _imported(auth)
        theirs = _django_request(request)
        # As Django's handler has it: a thread of its own for the request's database connections,
        # which are closed at its end.
        async with ThreadSensitiveContext():
            try:
                if iscoroutinefunction(check):
                    verdict = await check(theirs)
                else:
                    verdict = await sync_to_async(check)(theirs)
                return bool(await verdict if isawaitable(verdict) else verdict)
            except PermissionDenied as error:
                raise HTTPException(403, str(error) or "Forbidden.") from None
            except SuspiciousOperation as error:  # such as a host that is not in ALLOWED_HOSTS
                logger.warning("%s", error)
                raise HTTPException(400, "Bad request.") from None
            finally:
                await sync_to_async(close_old_connections)()

    return authorize


def _django_request(request: Request) -> HttpRequest:
    """Of the same headers, without the body. The user is looked up when it is asked for."""
    # These import models, which there are none of while asgi.py is being imported.
    from django.contrib.auth.middleware import AuthenticationMiddleware
    from django.contrib.sessions.middleware import SessionMiddleware

    theirs = ASGIRequest(dict(request.scope), BytesIO())
    SessionMiddleware(_nothing).process_request(theirs)
    AuthenticationMiddleware(_nothing).process_request(theirs)
    return theirs


def _nothing(request: HttpRequest) -> HttpResponse:
    return HttpResponse()
