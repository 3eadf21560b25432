"""The command line. Here the process is ours, so here alone we print and set up logging.

``program.py`` finds the command and imports it when it is called, so that help is fast, and makes
one line of any error; ``streams.py`` and ``signals.py`` are for what may befall any command.
``options.py`` makes options of all settings. ``chat``, ``complete`` and ``embed`` speak HTTP to
whatever ``service.py`` opens: a server, or a model in this process. ``serve`` runs uvicorn by
``server.py``. ``doctor`` examines facts that ``diagnosis/`` makes findings of.

Knows typer, rich, uvicorn and httpx, which no other part of the package does.
"""
