"""The file of one sequence's state: its format, its checks, its atomic writing. Knows no index.

    offset     size
    0             8  magic
    8             4  version
    12            4  n_tokens
    16            8  n_bytes, of the state
    24           16  digest of the fingerprint
    40           16  digest of the salt
    56            4  crc32 of the tokens
    60            4  crc32 of the state
    64            4  crc32 of the 64 bytes above
    68   4 n_tokens  tokens, int32
    ..      n_bytes  state, up to the end of the file

All numbers are little-endian. The name is a digest of fingerprint, salt and tokens.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from openai_local.engine.backend import State

MAGIC = b"OAILSEQ\x00"
VERSION = 1
# crc32 finds what crashes and disks do to a file, at 4 GB/s where blake2b makes 0.9. Against
# forgery neither helps: whoever may write to the directory may write a valid file.
_PREFIX = struct.Struct("<8sI")
_HEADER = struct.Struct("<8sIIQ16s16sII")
_CRC = struct.Struct("<I")
_N_FIXED = _HEADER.size + _CRC.size
_NAME = re.compile(r"[0-9a-f]{32}\.seqstate")
_PARTIAL = ("seqstate-", ".partial")  # so begins and ends what is being written
_CHUNK_BYTES = 16 << 20


class DamagedEntry(Exception):
    """The file at ``path`` does not hold the state it should; ``reason`` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ForeignFile(DamagedEntry):
    """The file is nothing that we wrote, so it is not ours to remove."""


class OtherVersion(DamagedEntry):
    """The file is ours, in a format that is not read here."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a state belongs to. Equal keys have one file."""

    fingerprint: bytes  # digests: a salt may be a secret, and is not to be found on the disk
    salt: bytes
    tokens: bytes = field(repr=False)  # see pack(); a tuple would take nine times as much

    @property
    def n_tokens(self) -> int:
        return len(self.tokens) // 4

    @property
    def file_name(self) -> str:
        content = self.fingerprint + self.salt + self.tokens
        return hashlib.blake2b(content, digest_size=16).hexdigest() + ".seqstate"


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part, verified; the file has the size that it tells."""

    fingerprint: bytes
    salt: bytes
    n_tokens: int
    n_bytes: int
    tokens_crc: int
    state_crc: int


def digest(text: str) -> bytes:
    """16 bytes that stand for ``text``."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pack(tokens: Sequence[int]) -> bytes:
    """Token ids as they lie in the file: int32, little-endian."""
    return np.asarray(tokens, dtype="<i4").tobytes()


def is_name(name: str) -> bool:
    """Whether a file of this name may be ours."""
    return _NAME.fullmatch(name) is not None


def is_partial(name: str) -> bool:
    """Whether a file of this name may be one that is being written, or never was to its end."""
    return name.startswith(_PARTIAL[0]) and name.endswith(_PARTIAL[1])


def file_size(n_tokens: int, n_bytes: int) -> int:
    """In bytes, for ``n_bytes`` of state."""
    return _N_FIXED + 4 * n_tokens + n_bytes


def open_file(path: Path) -> BinaryIO:
    """For reading. Raises OSError, also for a symbolic link where the system can tell."""
    return open(path, "rb", opener=lambda p, flags: os.open(p, flags | _NO_FOLLOW))


_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)


def read_header(file: BinaryIO, path: Path) -> Header:
    """Leaves ``file`` at the tokens. Raises DamagedEntry, ForeignFile, OtherVersion, OSError."""
    raw = file.read(_N_FIXED)
    if not (raw.startswith(MAGIC) or MAGIC.startswith(raw)):
        raise ForeignFile(path, "no state of a sequence")
    if len(raw) >= _PREFIX.size and _PREFIX.unpack_from(raw)[1] != VERSION:
        raise OtherVersion(path, "another version")
    if len(raw) < _N_FIXED:
        raise DamagedEntry(path, "the header is cut off")
    if _CRC.unpack_from(raw, _HEADER.size)[0] != zlib.crc32(raw[: _HEADER.size]):
        raise DamagedEntry(path, "the header is damaged")
    _, _, n_tokens, n_bytes, fingerprint, salt, tokens_crc, state_crc = _HEADER.unpack_from(raw)
    n_there = os.fstat(file.fileno()).st_size
    # From here on no number is larger than the file, so none can ask for absurd memory.
    if n_there != file_size(n_tokens, n_bytes):
        raise DamagedEntry(path, f"{n_there} bytes instead of {file_size(n_tokens, n_bytes)}")
    return Header(fingerprint, salt, n_tokens, n_bytes, tokens_crc, state_crc)


def read_key(file: BinaryIO, path: Path, header: Header) -> Key:
    """Goes on after read_header, up to the state. Raises DamagedEntry, ForeignFile, OSError."""
    tokens = file.read(4 * header.n_tokens)
    if len(tokens) != 4 * header.n_tokens or zlib.crc32(tokens) != header.tokens_crc:
        raise DamagedEntry(path, "the tokens are damaged")
    key = Key(header.fingerprint, header.salt, tokens)
    if key.file_name != path.name:
        raise ForeignFile(path, "the name belongs to another state")
    return key


def read_state(path: Path) -> State:
    """The state in a file, all of which is verified, its name included.

    Raises DamagedEntry and its kin, OSError.
    """
    with open_file(path) as file:
        header = read_header(file, path)
        read_key(file, path, header)
        state = np.empty(header.n_bytes, np.uint8)
        n_read = file.readinto(state.data)  # type: ignore[attr-defined]
    if n_read != header.n_bytes or zlib.crc32(state.data) != header.state_crc:
        raise DamagedEntry(path, "the state is damaged")
    return state


def write_state(directory: Path, key: Key, state: State, between: Callable[[], None]) -> Path:
    """Returns the path, at which there is the whole file or what was there before.

    ``between`` is called every few MB; what it raises ends the writing. Raises OSError.
    """
    head = _HEADER.pack(
        MAGIC, VERSION, key.n_tokens, state.size, key.fingerprint, key.salt,
        zlib.crc32(key.tokens), zlib.crc32(state.data),
    )  # fmt: skip
    path = directory / key.file_name
    # For the owner's eyes only, as mkstemp makes files: they hold people's prompts.
    handle, partial = tempfile.mkstemp(_PARTIAL[1], _PARTIAL[0], directory)
    try:
        with open(handle, "wb") as file:
            file.write(head + _CRC.pack(zlib.crc32(head)) + key.tokens)
            for start in range(0, state.size, _CHUNK_BYTES):
                between()
                file.write(state.data[start : start + _CHUNK_BYTES])
                file.flush()
                # Or a power cut could leave the name without the content; and one for it all would
                # keep readers waiting for seconds.
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path
