"""A model's source to the file in which it is, downloaded if it is not there yet.

Blocks, for as long as a download takes: not for an event loop. Files of URLs are kept in the user's
cache directory; those of the hub in the hub's (``hub.py``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import platformdirs

from openai_local.engine.errors import EngineStopped
from openai_local.engine.gguf.file import part_of
from openai_local.models.download import (
    Checksum,
    Download,
    FetchFailed,
    OnProgress,
    digest,
    download,
)
from openai_local.models.hub import Hub, Progress, fetch_from_hub
from openai_local.models.sources import HubSource, ModelSource, WebSource

logger = logging.getLogger(__name__)


def fetch(
    source: ModelSource,
    *,
    on_progress: OnProgress | None = None,
    hub: Hub | None = None,
    cache: Path | None = None,
) -> Path:
    """The path of the model, or of its first part.

    ``on_progress`` is told the bytes that are there and all of them, None if that is not known;
    what it raises ends the download, and the next one goes on from there. Raises FetchFailed, a
    ModelLoadFailed whose reason is one line.
    """
    hub = hub or Hub()
    if isinstance(source, HubSource):
        return fetch_from_hub(source, hub, on_progress)
    if isinstance(source, WebSource):
        try:
            return _fetch_url(source, cache or downloads(), on_progress, offline=hub.offline)
        except OSError as error:  # of the cache
            raise FetchFailed(str(source), str(error)) from None
    return source


class Fetcher:
    """Gets one model when it is asked to, and tells how far it is. Safe from several threads."""

    def __init__(self, source: HubSource | WebSource, hub: Hub) -> None:
        self.source = source
        self._hub = hub
        self._share: float | None = None
        self._told = 0

    @property
    def progress(self) -> float | None:
        """From 0 to 1 while something is downloaded; else None."""
        return self._share

    def fetch(self, stopping: Callable[[], bool]) -> Path:
        """The model's file. Where ``stopping`` holds, it raises EngineStopped, and the next one
        goes on from there. Blocks; raises FetchFailed."""

        def report(done: int, total: int | None) -> None:
            # The interpreter waits for the thread that downloads.
            if stopping() or not threading.main_thread().is_alive():
                raise EngineStopped
            self._tell(done, total)

        self._told = 0
        try:
            return fetch(self.source, on_progress=report, hub=self._hub)
        finally:
            self._share = None

    def _tell(self, done: int, total: int | None) -> None:
        self._share = min(1.0, done / total) if total else 0.0
        tenth = int(10 * self._share)
        if done == 0 or tenth > self._told:
            self._told = tenth
            of = f"{100 * self._share:.0f} % of {total / 1e9:.2f} GB" if total else "begun"
            logger.info("downloading %s: %s", self.source, of)


def downloads() -> Path:
    """Where files of URLs are kept."""
    return Path(platformdirs.user_cache_dir("openai_local")) / "downloads"


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file of a URL on the disk, and what is known of it."""

    path: Path
    url: str
    sha256: str

    def save(self) -> None:
        """Leave the record beside the file."""
        stat = self.path.stat()
        record: dict[str, str | int] = {"url": self.url, "sha256": self.sha256}
        record |= {"n_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        self.path.with_name(f"{self.path.name}.json").write_text(json.dumps(record))


def web_file(path: Path) -> WebFile | None:
    """What its record says of a downloaded file; None where that is not of this one."""
    try:
        record = json.loads(path.with_name(f"{path.name}.json").read_text())
        stat = path.stat()
        if (record["n_bytes"], record["mtime_ns"]) != (stat.st_size, stat.st_mtime_ns):
            return None
        return WebFile(path, str(record["url"]), str(record["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fetch_url(
    source: WebSource, cache: Path, on_progress: OnProgress | None, *, offline: bool
) -> Path:
    folder = cache / hashlib.sha256(source.url.encode()).hexdigest()[:16]
    parts = list(_parts(source))
    progress = Progress(on_progress, [None] * len(parts))
    for (url, name), sha256 in zip(parts, source.sha256 or [None] * len(parts), strict=True):
        path = folder / name
        known = web_file(path)
        if known is None or (sha256 and known.sha256 != sha256):
            if offline:
                raise FetchFailed(str(source), "this is offline, and it is not in the cache")
            path.unlink(missing_ok=True)  # of another checksum, or changed
            checksum = Checksum(sha256) if sha256 else None
            download(Download(url, path, str(source), checksum=checksum), progress)
            found = sha256 or digest(path, Checksum(""))
            WebFile(path, str(source), found).save()
            if not sha256:
                logger.warning("%s is not checked; its checksum is #sha256=%s", source, found)
        progress.next()
    return folder / parts[0][1]


def _parts(source: WebSource) -> Iterator[tuple[str, str]]:
    """URL and file name of each part."""
    part = part_of(Path(source.name))
    if part is None:
        yield source.url, source.name
        return
    prefix, _, n = part
    url = urlsplit(source.url)
    before = url.path.rpartition("/")[0]
    for number in range(1, n + 1):
        name = f"{prefix}-{number:05}-of-{n:05}.gguf"
        yield urlunsplit(url._replace(path=f"{before}/{quote(name)}")), name
