"""Which files of a repository make up the model that was asked for. Pure: names in, names out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from openai_local.engine.gguf.file import part_of
from openai_local.models.sources import HubSource

# As llama-server chooses; where neither is there it takes the first, which may be any.
DEFAULTS = ("Q4_K_M", "Q8_0")
# Beside a model: what it sees with, what drafts for it, and what it was quantised by.
_BESIDE = re.compile(
    r"mmproj|imatrix|(^|[-_.])(mtp|eagle3|dflash|dspark|draft)[-_.]", re.IGNORECASE
)
_MOST_SHOWN = 12


class NoSuchModel(Exception):
    """``reason`` says what there is instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def model_files(names: Iterable[str]) -> list[str]:
    """The models among the files of a repository; of split ones the first parts."""
    firsts = []
    for name in sorted(names):
        path = PurePosixPath(name)
        part = part_of(Path(path.name))
        if path.suffix.lower() == ".gguf" and not _BESIDE.search(path.name):
            if part is None or part[1] == 1:
                firsts.append(name)
    return firsts


def choose(source: HubSource, names: Sequence[str]) -> list[str]:
    """The parts of the one model that is meant, in order. Raises NoSuchModel."""
    if source.file is not None:
        return parts(_named(source.file, names), names)
    there = model_files(names)
    if not there:
        raise NoSuchModel("there is no GGUF model in it")
    if source.quantization is not None:
        matching = _of(source.quantization, there)
        if not matching:
            raise NoSuchModel(f"it has no {source.quantization}; there are {_shown(there)}")
        return parts(_only(matching, source.quantization), names)
    for quantization in DEFAULTS:
        if matching := _of(quantization, there):
            return parts(_only(matching, quantization), names)
    if len(there) > 1:
        raise NoSuchModel(f"name one of its files or quantisations: {_shown(there)}")
    return parts(there[0], names)


def parts(first: str, names: Iterable[str]) -> list[str]:
    """A file with the other parts of its model. Raises NoSuchModel where one is missing."""
    path = PurePosixPath(first)
    part = part_of(Path(path.name))
    if part is None:
        return [first]
    prefix, _, n = part
    wanted = [str(path.with_name(f"{prefix}-{i:05}-of-{n:05}.gguf")) for i in range(1, n + 1)]
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise NoSuchModel(f"{missing[0]} is not there, a part of the model")
    return wanted


def _named(file: str, names: Sequence[str]) -> str:
    if file in names:
        return file
    same = [name for name in names if PurePosixPath(name).name.lower() == file.lower()]
    if len(same) == 1:
        return same[0]
    there = _shown([name for name in sorted(names) if name.lower().endswith(".gguf")])
    raise NoSuchModel(f"it has no file {file}; there are {there}")


def _of(quantization: str, there: Sequence[str]) -> list[str]:
    """Those with the quantisation's name in theirs, or in their folder's, between marks."""
    name = re.escape(quantization)
    pattern = re.compile(rf"(?:^|[-_./]){name}(?=[-_.]*(?:/|\.gguf|-\d{{5}}-of-))", re.IGNORECASE)
    return [file for file in there if pattern.search(file)]


def _only(matching: Sequence[str], quantization: str) -> str:
    if len(matching) > 1:
        # Unsloth's dynamic ones have the plain name in theirs.
        matching = [
            n for n in matching if f"UD-{quantization}".lower() not in n.lower()
        ] or matching
    if len(matching) > 1:
        raise NoSuchModel(f"{quantization} may be any of {_shown(matching)}")
    return matching[0]


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more if names else "none"
