"""The application as an instance, for servers that do not call factories.

hypercorn, granian and daphne take ``openai_local.asgi:app``; its settings come from the
environment.
"""

import openai_local

app = openai_local.app()
