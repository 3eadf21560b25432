"""Pages of Django's own: one to log in at, and one that gives a token to who did."""

from django.contrib.auth import authenticate, login
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, JsonResponse
from django.middleware.csrf import get_token
from django.urls import path
from django.views.decorators.http import require_POST

from mysite.auth import token_of


def index(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": request.user.get_username(), "csrf": get_token(request)})


@require_POST
def log_in(request: HttpRequest) -> JsonResponse:
    user = authenticate(request, **request.POST.dict())
    if user is None:
        return JsonResponse({"error": "wrong name or password"}, status=400)
    login(request, user)
    return index(request)


@login_required
def token(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"token": token_of(request.user)})


urlpatterns = [path("", index), path("login/", log_in), path("token/", token)]
