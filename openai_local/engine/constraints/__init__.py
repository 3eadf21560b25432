"""What binds a generation's tokens: schemas, regexes, choices and grammars, compiled and followed.

``compiler.py`` compiles one for a vocabulary, with llguidance. Before that ``grammars.py`` puts all
kinds into one form: ``gbnf.py`` reads llama.cpp's, and ``json_schema.py`` says a schema in what can
be enforced (``json_logic.py``, ``json_opposites.py``, ``json_strings.py``). ``guide.py`` follows it
while tokens are drawn, on the engine's thread.
"""
