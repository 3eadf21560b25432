"""As `django-admin startproject` makes it, but for whose get_asgi_application it is."""

import os

from openai_local.django import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = get_asgi_application()
