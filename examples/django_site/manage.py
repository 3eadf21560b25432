"""A Django project with a local model at /v1, for its users alone.

pip install django uvicorn; then, in this folder:

    python manage.py migrate
    uvicorn mysite.asgi:application
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    execute_from_command_line(sys.argv)
