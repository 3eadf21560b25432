"""What a chat is to a model: messages to a prompt by its template, and its text to messages.

``template.py`` renders, in the bounds of ``sandbox.py``; ``traits.py`` finds by probes what a
template knows, and ``messages.py`` puts messages into that shape. How a model writes its thoughts
(``reasoning.py``) and calls (``tool_formats/``) is read off the template, too; ``language.py`` is
both in one vocabulary's tokens, and ``parser.py`` takes a text apart by them, into ``deltas.py``.

Knows no HTTP and no llama.cpp.
"""
