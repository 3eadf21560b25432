"""Writes a GGUF file again with some of its metadata or tensors changed.

Knows the file format only, as the ``gguf`` package has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as Type
from numpy.typing import NDArray

Fields = dict[str, tuple[Any, Type, Type | None]]  # value, type, type of a list's values
Tensors = dict[str, NDArray[Any]]


def read(path: Path) -> tuple[Fields, Tensors]:
    """Tensors of unquantised types only."""
    reader = gguf.GGUFReader(path)
    fields: Fields = {}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] is Type.ARRAY else None
            fields[key] = field.contents(), field.types[0], inner
    tensors = {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in reader.tensors}
    return fields, tensors


def write(path: Path, fields: Fields, tensors: Mapping[str, NDArray[Any]]) -> None:
    architecture = fields.get("general.architecture", ("", Type.STRING, None))[0]
    writer = gguf.GGUFWriter(path, architecture or "none")
    del writer.kv_data[0]["general.architecture"]
    try:
        for key, (value, kind, inner) in fields.items():
            writer.add_key_value(key, value, kind, inner)
        for name, data in tensors.items():
            writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def edited(source: Path, target: Path, edit: Callable[[Fields, Tensors], object]) -> Path:
    """``target``, which is ``source`` after ``edit``."""
    fields, tensors = read(source)
    edit(fields, tensors)
    write(target, fields, tensors)
    return target
