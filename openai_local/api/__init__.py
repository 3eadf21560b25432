"""OpenAI's requests without HTTP: what a body asks for, done by an engine, and the answer's shape.

``types/`` are the bodies and the answers, and ``bodies.py`` reads the first or refuses them by
name. ``chat_completions.py``, ``completions.py``, ``embeddings.py``, ``rerank.py`` and
``tokens.py`` do one thing each, for the routes and for Python alike. A completion is planned, which
may take long and be given up, and then started, which submits all of its generations at once or
none.

Knows no Starlette and no event loop but through anyio.
"""
