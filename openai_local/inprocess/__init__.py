"""Python without HTTP: an application's models for code in the same process.

``engine.py`` is for code on an event loop, and ``sync_engine.py`` the same for code on none, by a
loop on a thread of its own (``portal.py``). ``clients.py`` are OpenAI's own clients, whose
requests go to an ASGI application without a socket (``transports.py``, ``exchange.py``).
"""
