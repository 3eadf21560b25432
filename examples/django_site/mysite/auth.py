"""Who may use the model: whoever is logged in, and programs with a token that was signed here."""

from django.contrib.auth.models import User
from django.core.signing import BadSignature, dumps, loads
from django.http import HttpRequest

from openai_local.django import logged_in

SALT = "model"


def token_of(user: User) -> str:
    return dumps(user.pk, salt=SALT)


def user_or_token(request: HttpRequest) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return logged_in(request)
    try:
        key = loads(token, salt=SALT, max_age=24 * 3600)
    except BadSignature:
        return False
    return User.objects.filter(pk=key, is_active=True).exists()
