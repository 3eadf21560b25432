"""The TOML file with settings: read as it is, its relative paths made those of its folder.

It does not know what settings there are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What a model may be named by in place of a path; a single letter is a drive.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


def read_toml(
    path: Path,
    path_keys: Collection[str],
    spell_out: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """The file's tables; ``path_keys``, at any depth, are relative to its folder, or to ``~``.
    Before that, ``spell_out`` gives what the file has in short.

    Raises OSError, and ValueError where it is no TOML.
    """
    values = spell_out(tomllib.loads(path.read_text(encoding="utf-8")))
    return _with_paths(values, path.parent, path_keys)


def _with_paths(table: dict[str, Any], folder: Path, keys: Collection[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            value = _with_paths(value, folder, keys)
        elif key in keys and isinstance(value, str) and not _SCHEME.match(value):
            value = str(folder / Path(value).expanduser())
        values[key] = value
    return values
