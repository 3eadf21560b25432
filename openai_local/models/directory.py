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
_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})")


class Directory:
    """Safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        # What is wrong with a file that was looked at, when it was as it is: headers are read once.
        self._problems: dict[Path, tuple[tuple[int, int], str | None]] = {}
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
        for folder, folders, names in os.walk(self.path, onerror=self._unreadable):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                hidden = name.startswith(".") or PROJECTOR in name.lower()
                if name.lower().endswith(SUFFIX) and not hidden:
                    yield Path(folder, name)

    def _name(self, path: Path) -> str | None:
        """None for a further part of a split file."""
        stem = path.name[: -len(SUFFIX)]
        part = _PART.fullmatch(stem)
        if part is not None:
            if int(part["number"]) != 1:
                return None
            stem = part["name"]
        return (path.parent / stem).relative_to(self.path).as_posix().lower()

    def _problem(self, path: Path) -> str | None:
        try:
            stat = path.stat()
        except OSError as error:
            return str(error)
        stamp = (stat.st_mtime_ns, stat.st_size)
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
            logger.warning("%s is left out: %s", path, problem)

    def _unreadable(self, error: OSError) -> None:
        self._tell(Path(error.filename), str(error))
