"""A model file's header, read and checked before llama.cpp gets it, which a wrong one may end.

``file.py`` reads it within bounds, ``facts.py`` answers questions about it, ``layers.py`` says what
each layer keeps, and ``check.py`` has the rules, with those of ``vocabulary.py`` and
``charsmap.py``. A path in, facts or a refusal with a reason out.
"""
