"""A directory of GGUF files as models, by the names of the files. It opens no engine."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from openai_local.models.gguf_file import InvalidGguf, read_header

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"
# What makes images of a model's input is no model.
PROJECTOR = "mmproj"
MAX_PARTS = 1000
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")

# Time and size of each part of a model; of those that are not there, none.
_Stamp = tuple[tuple[int, int] | None, ...]


class Directory:
    """Safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        # What is wrong with a file that was looked at, when it was as it is: headers are read once.
        self._problems: dict[Path, tuple[_Stamp, str | None]] = {}
        self._told: set[tuple[Path, str]] = set()

    def scan(self) -> dict[str, Path]:
        """The sound files by name: their paths from here, in small letters, without suffix.

        Split files count as one, of which the first part is named. Blocks.
        """
        with self._lock:
            found: dict[str, Path] = {}
            paths = sorted(self._files())
            for path in paths:
                name = self._name(path)
                if name is None or self._problem(path) is not None:
                    continue
                if name in found:
                    self._tell(path, f"its name {name!r} is that of {found[name]}")
                    continue
                found[name] = path
            for path in self._problems.keys() - set(paths):
                del self._problems[path]
            return found

    def _files(self) -> Iterator[Path]:
        seen: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(
            self.path, onerror=self._unreadable, followlinks=True
        ):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if not self._is_new(Path(folder), seen):
                folders.clear()
                continue
            for name in names:
                hidden = name.startswith(".") or PROJECTOR in name.lower()
                if name.lower().endswith(SUFFIX) and not hidden:
                    yield Path(folder, name)

    def _is_new(self, folder: Path, seen: set[tuple[int, int]]) -> bool:
        """False where links lead again to a folder that was looked into."""
        try:
            stat = folder.stat()
        except OSError as error:
            self._unreadable(error)
            return False
        known = (stat.st_dev, stat.st_ino) in seen
        seen.add((stat.st_dev, stat.st_ino))
        return not known

    def _name(self, path: Path) -> str | None:
        """None for a further part of a split file, and for a name that cannot be sent."""
        try:
            path.relative_to(self.path).as_posix().encode()
        except UnicodeEncodeError:
            self._tell(path, "its name is no text")
            return None
        stem = path.name[: -len(SUFFIX)]
        part = _PART.fullmatch(stem)
        if part is not None:
            if int(part["number"]) != 1:
                return None
            stem = part["name"]
        return (path.parent / stem).relative_to(self.path).as_posix().lower()

    def _problem(self, path: Path) -> str | None:
        stamp = _stamp(path)
        known = self._problems.get(path)
        if known is None or known[0] != stamp:
            problem = None
            try:
                read_header(path)
            except (InvalidGguf, OSError) as error:
                problem = getattr(error, "reason", str(error))
                self._tell(path, problem)
            known = self._problems[path] = (stamp, problem)
        return known[1]

    def _tell(self, path: Path, problem: str) -> None:
        """Once for each problem."""
        if (path, problem) not in self._told:
            self._told.add((path, problem))
            # A name that is no text cannot be written to every log.
            shown = str(path).encode(errors="replace").decode()
            logger.warning("%s is left out: %s", shown, problem)

    def _unreadable(self, error: OSError) -> None:
        self._tell(Path(error.filename), str(error))


def _stamp(path: Path) -> _Stamp:
    paths, part = [path], _PART.fullmatch(path.name[: -len(SUFFIX)])
    if part is not None and int(part["total"]) <= MAX_PARTS:
        numbers = range(2, int(part["total"]) + 1)
        paths += [path.with_name(f"{part['name']}-{i:05}-of-{part['total']}.gguf") for i in numbers]
    return tuple(map(_stamp_of, paths))


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
