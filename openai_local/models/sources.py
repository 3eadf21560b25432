"""Where a model comes from, as a setting says it: a path, a repository of the hub, or a URL.

    model.gguf                       a file
    hf:owner/repo                    its Q4_K_M, else its Q8_0, else its only one
    hf:owner/repo:Q5_K_M             the file of this quantisation
    hf:owner/repo:model-q5_k_m.gguf  this file
    hf:owner/repo@revision:…         of a branch, a tag or a commit
    https://host/model.gguf#sha256=… a file that must have this checksum

Pure: nothing is looked up here. ``fetch.py`` gets the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from openai_local.engine.gguf.file import part_of

_HUB = re.compile(r"hf:(?P<repo>[^/@:]+/[^/@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<what>.+))?")
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


class InvalidSource(ValueError):
    """``text`` names no model; ``reason`` says why."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text!r} is no model: {reason}")
        self.text = text
        self.reason = reason


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model in a repository; ``file`` or ``quantization`` says which, if it has several."""

    repo: str
    revision: str | None = None
    quantization: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        what = self.file or self.quantization
        return f"hf:{self.repo}{revision}" + (f":{what}" if what else "")


@dataclass(frozen=True, slots=True)
class WebSource:
    """A file at a URL, and its checksum: of each part, if it is the first of several."""

    url: str
    sha256: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Without what may be a secret: user, password and query."""
        url = urlsplit(self.url)
        host = url.hostname or ""
        port = f":{url.port}" if url.port else ""
        return urlunsplit((url.scheme, host + port, url.path, "", ""))

    @property
    def name(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.url).path)).name


ModelSource = Path | HubSource | WebSource


def parse_source(text: str | Path) -> ModelSource:
    """What a setting means. Raises InvalidSource for what names neither."""
    if isinstance(text, Path):
        return text
    if text.startswith("hf:"):
        return _hub(text)
    if text.startswith(("https:", "http:")):
        return _web(text)
    if not text or "\0" in text:
        raise InvalidSource(text, "a path, hf:owner/repo or an https URL is needed")
    return Path(text)


def default_id(source: ModelSource) -> str:
    """Its name in the API: the file's or the repository's, without what says that it is a GGUF."""
    if isinstance(source, HubSource) and source.file is None:
        name = source.repo.partition("/")[2]
        return re.sub(r"[-_.]gguf$", "", name.lower())
    if isinstance(source, HubSource):
        name = PurePosixPath(source.file or "").name
    else:
        name = source.name
    part = part_of(Path(name))
    return (part[0] if part else PurePosixPath(name).stem).lower()


def _hub(text: str) -> HubSource:
    match = _HUB.fullmatch(text)
    if match is None or not _REPO.fullmatch(match["repo"]):
        raise InvalidSource(text, "hf: is followed by owner/repo, and then :quantisation or :file")
    what = match["what"]
    if what is None:
        return HubSource(match["repo"], match["revision"])
    if not what.lower().endswith(".gguf"):
        if not re.fullmatch(r"[\w.-]+", what):
            raise InvalidSource(text, f"{what!r} is neither a quantisation nor a GGUF file")
        return HubSource(match["repo"], match["revision"], quantization=what)
    parts = PurePosixPath(what).parts
    if what.startswith("/") or ".." in parts or "\\" in what or "\0" in what:
        raise InvalidSource(text, f"{what!r} is no path in a repository")
    return HubSource(match["repo"], match["revision"], file=what)


def _web(text: str) -> WebSource:
    try:
        url = urlsplit(text)
        host = url.hostname
        _ = url.port
    except ValueError as error:
        raise InvalidSource(text, str(error)) from None
    shown = WebSource(text)
    if not host or not shown.name.lower().endswith(".gguf"):
        raise InvalidSource(str(shown), "it is not the URL of a GGUF file")
    if url.scheme == "http" and host not in LOOPBACK:
        raise InvalidSource(str(shown), "a file may be changed on its way over http; use https")
    sums: tuple[str, ...] = ()
    if url.fragment:
        name, _, value = url.fragment.partition("=")
        sums = tuple(value.lower().split(","))
        if name != "sha256" or not all(map(_SHA256.fullmatch, sums)):
            raise InvalidSource(str(shown), "what follows # is not sha256= and 64 hex digits")
    part = part_of(Path(shown.name))
    n_parts = part[2] if part else 1
    if part and part[1] != 1:
        raise InvalidSource(str(shown), "it is not the first of its parts")
    if sums and len(sums) != n_parts:
        raise InvalidSource(str(shown), f"it has {n_parts} parts and {len(sums)} checksums")
    return WebSource(urlunsplit(url._replace(fragment="")), sums)
