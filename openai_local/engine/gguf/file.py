"""What a GGUF file says of itself, read within bounds of memory and time that no file exceeds.

Knows the file format only. What of it llama.cpp can be given is ``check.py``'s.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from openai_local.engine.errors import InvalidGguf

MAGIC = b"GGUF"
# Far beyond what models have: 260,000 tokens and 500,000 merges make headers of 20 MB.
MAX_HEADER_BYTES = 64 << 20
MAX_STRINGS = 1 << 21
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_TEXT_BYTES = 4 << 20  # of a string that is kept
MAX_KEPT = 4096  # numbers of an array that are kept: there are at most 512 layers
MAX_NAME_BYTES = 63  # of a tensor: GGML_MAX_NAME, less the end
MAX_DIMS = 4
# llama.cpp asserts that the tensors of a mapped file begin so.
ALIGNMENT = 32
# Lists that are kept whole: llama.cpp asserts things about their values.
TOKENS = "tokenizer.ggml.tokens"
TOKEN_TYPES = "tokenizer.ggml.token_type"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"

# What else comes under the name of a model.
_OTHERS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"<": "a web page",
    b"version https://git-lfs": "the name of a large file in git, which is to be pulled",
    b"tjgg": "of the format before GGUF",
    b"fmgg": "of the format before GGUF",
    b"lmgg": "of the format before GGUF",
}
_WINDOW = 1 << 20
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TYPE_NAMES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array",
    "uint64", "int64", "float64",
)  # fmt: skip

# Name, elements of a block, bytes of a block (``ggml.c``, ``type_traits``).
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Array:
    """``n`` values of a type. ``values`` has them, or is empty where they are not kept: there are
    more than MAX_KEPT, or they are strings. Of the tokens it has all, as bytes, and what is told
    of them above."""

    type: str
    n: int
    values: tuple[Any, ...] = ()


Value = int | float | bool | str | Array


@dataclass(frozen=True, slots=True)
class Tensor:
    """The innermost dimension comes first; ``offset`` is from the beginning of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        n = 1
        for dimension in self.shape:
            n *= dimension
        return n


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One file, or one part of a split one."""

    path: Path
    n_bytes: int
    version: int
    metadata: Mapping[str, Value]
    types: Mapping[str, str]
    tensors: tuple[Tensor, ...]


class _Cursor:
    """Reads a file forward through a window; every read is checked against what is left."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path = path
        self.size = size
        self._file = file
        self._window = b""
        self._start = 0  # of the window, in the file
        self._at = 0  # in the window
        self.n_strings = 0

    @property
    def position(self) -> int:
        return self._start + self._at

    def refuse(self, reason: str) -> InvalidGguf:
        return InvalidGguf(self.path, reason)

    def _need(self, n: int) -> None:
        """Have the next ``n`` bytes in the window."""
        if n <= len(self._window) - self._at:
            return
        self._check(n)
        position = self.position
        self._file.seek(position)
        self._window = self._file.read(max(n, _WINDOW))
        self._start, self._at = position, 0
        if len(self._window) < n:  # it shrank since it was opened
            raise self.refuse("it ends before its header does")

    def _check(self, n: int) -> None:
        if n > self.size - self.position:
            raise self.refuse("it ends before its header does")
        if self.position + n > MAX_HEADER_BYTES:
            raise self.refuse(f"its header is longer than {MAX_HEADER_BYTES >> 20} MiB")

    def take(self, n: int) -> bytes:
        self._need(n)
        value = self._window[self._at : self._at + n]
        self._at += n
        return value

    def return_to(self, position: int) -> None:
        """Within what was taken last."""
        self._at = position - self._start

    def skip(self, n: int) -> None:
        self._check(n)
        self._at += n
        if self._at > len(self._window):
            self._start, self._at, self._window = self.position, 0, b""

    def number(self, code: str) -> Any:
        size = struct.calcsize(code)
        self._need(size)
        (value,) = struct.unpack_from(code, self._window, self._at)
        self._at += size
        return value

    def text(self, what: str) -> bytes:
        length = self.number("<Q")
        if length > MAX_TEXT_BYTES:
            raise self.refuse(f"{what} is a string of {length} bytes")
        return self.take(length)

    def strings(self, n: int, *, keep: bool) -> tuple[bytes, ...]:
        """``n`` strings, passed over unless they are to be kept."""
        self.n_strings += n
        if self.n_strings > MAX_STRINGS:
            raise self.refuse(f"its lists have more than {MAX_STRINGS} strings")
        kept: list[bytes] = []
        unpack, left = struct.Struct("<Q").unpack_from, n
        while left:
            self._need(8)
            window, at, limit = self._window, self._at, len(self._window) - 8
            while left and at <= limit:
                (length,) = unpack(window, at)
                end = at + 8 + length
                if end > len(window):
                    break
                if keep:
                    kept.append(window[at + 8 : end])
                at, left = end, left - 1
            self._at = at
            if left:  # one that reaches over the window's end
                length = self.number("<Q")
                kept.append(self.take(length)) if keep else self.skip(length)
                left -= 1
        return tuple(kept)


def read_gguf(path: Path) -> GgufFile:
    """The header of one file; nothing of its weights is read.

    Raises InvalidGguf, with a reason, for whatever is no whole, well-formed GGUF file that is
    within the bounds above.
    """
    try:
        if path.is_dir():
            raise InvalidGguf(path, "it is a directory")
        if not path.is_file():
            raise InvalidGguf(path, "there is no such file")
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, 2)
            return _read(_Cursor(path, file, size))
    except OSError as error:
        raise InvalidGguf(path, error.strerror or str(error)) from None
    except ValueError as error:  # a path with a NUL in it
        raise InvalidGguf(path, str(error)) from None


def _read(cursor: _Cursor) -> GgufFile:
    head = cursor.take(min(cursor.size, 64))
    if head[:4] != MAGIC:
        raise cursor.refuse(f"it is not a GGUF file{_what_else(head)}")
    cursor.return_to(4)
    version = cursor.number("<I")
    if version & 0xFFFF == 0:
        raise cursor.refuse("it is big-endian, or no GGUF file")
    if version not in (2, 3):
        raise cursor.refuse(f"it is of GGUF version {version}, not 2 or 3")
    n_tensors, n_keys = cursor.number("<Q"), cursor.number("<Q")
    for n, most, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "keys")):
        if n > most:
            raise cursor.refuse(f"it claims to have {n} {what}")
    metadata: dict[str, Value] = {}
    types: dict[str, str] = {}
    for _ in range(n_keys):
        key = _name(cursor, "a key", metadata)
        type_id = cursor.number("<I")
        metadata[key] = _value(cursor, key, type_id)
        types[key] = _TYPE_NAMES[type_id]
    tensors = _tensors(cursor, n_tensors, _alignment(cursor, metadata, types))
    return GgufFile(cursor.path, cursor.size, version, metadata, types, tensors)


def _what_else(head: bytes) -> str:
    if head[8:9] == b"{":
        return ", but safetensors"
    for mark, name in _OTHERS.items():
        if head.lstrip().startswith(mark):
            return f", but {name}"
    return "" if head else ": it is empty"


def _name(cursor: _Cursor, what: str, known: Mapping[str, object]) -> str:
    raw = cursor.text(what)
    # llama.cpp takes names as C strings: what follows a NUL would be another name.
    if not raw or b"\0" in raw:
        raise cursor.refuse(f"{what} is empty or has a NUL")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise cursor.refuse(f"{what} is not UTF-8: {raw[:40]!r}") from None
    if name in known:
        raise cursor.refuse(f"it has {name[:80]!r} twice")
    return name


def _value(cursor: _Cursor, key: str, type_id: int) -> Value:
    if type_id == _ARRAY:
        return _array(cursor, key)
    if type_id == _STRING:
        return cursor.text(repr(key)).decode(errors="replace")
    if type_id not in _SCALARS:
        raise cursor.refuse(f"{key[:80]!r} is of an unknown type {type_id}")
    value: int | float = cursor.number("<" + _SCALARS[type_id])
    return bool(value) if type_id == _BOOL else value


def _array(cursor: _Cursor, key: str) -> Array:
    type_id, n = cursor.number("<I"), cursor.number("<Q")
    if type_id == _STRING:
        return Array("string", n, cursor.strings(n, keep=key == TOKENS))
    if type_id not in _SCALARS:
        raise cursor.refuse(f"{key[:80]!r} is a list of an unknown type {type_id}")
    code = _SCALARS[type_id]
    n_bytes = n * struct.calcsize("<" + code)
    if n > MAX_KEPT and (key not in (TOKEN_TYPES, CHARSMAP) or n > MAX_STRINGS):
        cursor.skip(n_bytes)
        return Array(_TYPE_NAMES[type_id], n)
    values = struct.unpack(f"<{n}{code}", cursor.take(n_bytes))
    if type_id == _BOOL:
        values = tuple(map(bool, values))
    return Array(_TYPE_NAMES[type_id], n, values)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value], types: Mapping[str, str]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(value, int) or types.get("general.alignment", "uint32") != "uint32":
        raise cursor.refuse("its general.alignment is no uint32")
    if value < ALIGNMENT or value & (value - 1):
        raise cursor.refuse(f"its general.alignment is {value}: no power of two from {ALIGNMENT}")
    return value


def _tensors(cursor: _Cursor, n: int, alignment: int) -> tuple[Tensor, ...]:
    """The data of all tensors follows the header, in their order, each aligned."""
    known: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(n):
        name = _name(cursor, "a tensor's name", known)
        if len(name.encode()) > MAX_NAME_BYTES:
            raise cursor.refuse(f"a tensor's name is too long: {name[:80]!r}")
        n_dims = cursor.number("<I")
        if not 1 <= n_dims <= MAX_DIMS:
            raise cursor.refuse(f"tensor {name!r} has {n_dims} dimensions")
        shape = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims))
        type_id, offset = cursor.number("<I"), cursor.number("<Q")
        if type_id not in TENSOR_TYPES:
            raise cursor.refuse(f"tensor {name!r} is of an unknown type {type_id}")
        type_name, block, block_bytes = TENSOR_TYPES[type_id]
        n_elements = 1
        for dimension in shape:
            n_elements *= dimension
        if not 0 < n_elements < 1 << 63 or shape[0] % block:
            raise cursor.refuse(f"tensor {name!r} of type {type_name} has the shape {shape}")
        known[name] = type_name, shape, offset, n_elements // block * block_bytes
    start = _aligned(cursor.position, alignment)
    expected = 0
    for name, (_, _, offset, n_bytes) in known.items():
        if offset != expected:
            raise cursor.refuse(f"tensor {name!r} is at {offset}, not at {expected}")
        if start + offset + n_bytes > cursor.size:
            missing = start + offset + n_bytes - cursor.size
            raise cursor.refuse(f"it is cut off: {missing} bytes of tensor {name!r} are missing")
        expected = _aligned(offset + n_bytes, alignment)
    return tuple(
        Tensor(name, type_name, shape, start + offset, n_bytes)
        for name, (type_name, shape, offset, n_bytes) in known.items()
    )


def _aligned(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def part_of(path: Path) -> tuple[str, int, int] | None:
    """Prefix, number from 1, and how many, of a name such as ``big-00001-of-00003.gguf``."""
    match = _PART.fullmatch(path.name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def read_model(path: Path) -> tuple[GgufFile, ...]:
    """The parts of a model, of which ``path`` is the first; nearly always it is the only one.

    Raises InvalidGguf, also where a part is missing or of another model.
    """
    first = read_gguf(path)
    named = part_of(path)
    n = first.metadata.get("split.count", 0)
    if not isinstance(n, int) or n <= 1:
        if named is not None and named[2] > 1:
            raise InvalidGguf(path, f"its name says that it is one of {named[2]} parts, but not it")
        return (first,)
    if first.metadata.get("split.no") != 0:
        raise InvalidGguf(path, "it is not the first part of a split file")
    if named is None or named[1:] != (1, n):
        raise InvalidGguf(path, f"it is the first of {n} parts, and its name does not say so")
    parts = [first]
    for number in range(2, n + 1):
        part = read_gguf(path.with_name(f"{named[0]}-{number:05}-of-{n:05}.gguf"))
        if part.metadata.get("split.no") != number - 1:
            raise InvalidGguf(part.path, f"it is not part {number}")
        parts.append(part)
    names = [tensor.name for part in parts for tensor in part.tensors]
    if len(set(names)) < len(names):
        raise InvalidGguf(path, "its parts have tensors of the same name")
    expected = first.metadata.get("split.tensors.count", len(names))
    if expected != len(names):
        raise InvalidGguf(path, f"its parts have {len(names)} tensors, not {expected}")
    return tuple(parts)
