"""Models of the Hugging Face hub, in the hub's own cache, which other programs share.

The only module that imports huggingface_hub, on use: what is in a repository, who asks, and the
cache's layout are its; the transfer is ours (``download.py``), since its own begins again from
nothing after an interruption, and checks no checksum.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from openai_local.models.download import (
    AccessDenied,
    Checksum,
    Download,
    FetchFailed,
    OnProgress,
    download,
)
from openai_local.models.hub_files import NoSuchModel, choose
from openai_local.models.sources import HubSource

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
# What the hub says of a file becomes a path here.
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Hub:
    """Whom to ask, and as whom. None is what huggingface_hub takes: HF_ENDPOINT, HF_HUB_CACHE, and
    HF_TOKEN or the token that its login saved. ``offline``, as HF_HUB_OFFLINE, asks nobody."""

    endpoint: str | None = None
    cache: Path | None = None
    token: str | None = None
    offline: bool = False


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    n_bytes: int | None
    checksum: Checksum


def fetch_from_hub(source: HubSource, hub: Hub, on_progress: OnProgress | None = None) -> Path:
    """The path of the model's first part, in the cache; what of it is not there is downloaded.

    Where the hub cannot be reached, what is in the cache will do. Raises FetchFailed.
    """
    lib = _library(source)
    try:
        if hub.offline or lib.is_offline_mode():
            raise _Unreachable("this is offline")
        with _refusals(lib, source):
            info = _api(lib, hub).model_info(
                source.repo, revision=source.revision, files_metadata=True, timeout=TIMEOUT_S
            )
    except _Unreachable as error:
        return _cached(lib, source, hub, str(error))
    try:
        files = _chosen(source, info)
    except NoSuchModel as error:
        raise FetchFailed(str(source), error.reason) from None
    try:
        paths = _download(lib, source, hub, info.sha, files, on_progress)
    except AccessDenied as error:
        raise FetchFailed(str(source), _denied(source) if info.gated else error.reason) from None
    except _Unreachable as error:
        raise FetchFailed(str(source), str(error)) from None
    return paths[0]


class _Unreachable(Exception):
    pass


def _library(source: HubSource) -> ModuleType:
    try:
        # Its rooms are not attributes of it before they are imported.
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        reason = "it needs huggingface-hub: pip install openai-local[hub]"
        raise FetchFailed(str(source), reason) from None
    return huggingface_hub


def _api(lib: ModuleType, hub: Hub) -> Any:
    return lib.HfApi(endpoint=hub.endpoint, token=hub.token, library_name="openai_local")


@contextmanager
def _refusals(lib: ModuleType, source: HubSource) -> Iterator[None]:
    """The hub's errors, each as one line; those of the connection as _Unreachable."""
    errors = lib.errors
    try:
        yield
    except errors.GatedRepoError:
        raise FetchFailed(str(source), _denied(source)) from None
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository, or it is private and HF_TOKEN may not read it"
        raise FetchFailed(str(source), reason) from None
    except errors.RevisionNotFoundError:
        raise FetchFailed(str(source), f"it has no revision {source.revision}") from None
    except errors.HFValidationError as error:
        raise FetchFailed(str(source), str(error).partition("\n")[0]) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (408, 429) or status >= 500:
            raise _Unreachable(f"the hub answers {status}") from None
        raise FetchFailed(str(source), f"the hub answers {status}") from None
    except Exception as error:  # its client has a base of its own for what the network does
        if not isinstance(error, OSError) and "httpx" not in type(error).__module__:
            raise
        raise _Unreachable(f"the hub cannot be reached: {error}") from None


def _denied(source: HubSource) -> str:
    page = f"https://huggingface.co/{source.repo}"
    return f"it is gated: ask for access at {page}, and set HF_TOKEN"


def _chosen(source: HubSource, info: Any) -> list[_File]:
    """Raises NoSuchModel."""
    known = {}
    for sibling in info.siblings or ():
        if not _is_inside(sibling.rfilename):
            continue
        large = sibling.lfs is not None
        value = sibling.lfs.sha256 if large else sibling.blob_id
        known[sibling.rfilename] = _File(
            sibling.rfilename, sibling.size, Checksum(value or "", git=not large)
        )
    chosen = [known[name] for name in choose(source, list(known))]
    for file in chosen:
        pattern = _COMMIT if file.checksum.git else _SHA256
        if not pattern.fullmatch(file.checksum.value):
            raise NoSuchModel(f"the hub tells no checksum of {file.name}")
    if not _COMMIT.fullmatch(info.sha or ""):
        raise NoSuchModel("the hub tells no commit of it")
    return chosen


def _is_inside(name: str) -> bool:
    """Whether a file's name stays within its repository, on any system."""
    return not set(re.split(r"[/\\]", name)) & {"", ".", ".."} and ":" not in name


def _download(
    lib: ModuleType,
    source: HubSource,
    hub: Hub,
    commit: str,
    files: list[_File],
    on_progress: OnProgress | None,
) -> list[Path]:
    cache = Path(hub.cache or lib.constants.HF_HUB_CACHE)
    folder = "models--" + source.repo.replace("/", "--")
    headers = lib.utils.build_hf_headers(token=hub.token, library_name="openai_local")
    progress = Progress(on_progress, [file.n_bytes for file in files])
    for file in files:
        there = lib.try_to_load_from_cache(source.repo, file.name, cache_dir=cache, revision=commit)
        if isinstance(there, str):
            progress.next()
            continue
        download(
            Download(
                url=lib.hf_hub_url(source.repo, file.name, revision=commit, endpoint=hub.endpoint),
                target=cache / folder / "blobs" / file.checksum.value,
                shown=str(source),
                headers={name.title(): value for name, value in headers.items()},
                checksum=file.checksum,
                n_bytes=file.n_bytes,
                # The hub's own, so that its programs wait for us and we for them.
                lock=cache / ".locks" / folder / f"{file.checksum.value}.lock",
            ),
            progress,
        )
        progress.next()
    with _refusals(lib, source):
        # It finds the blobs there, and makes what points at them.
        paths = [
            Path(
                lib.hf_hub_download(
                    source.repo,
                    file.name,
                    revision=source.revision or "main",
                    cache_dir=cache,
                    endpoint=hub.endpoint,
                    token=hub.token,
                )
            )
            for file in files
        ]
    for path, file in zip(paths, files, strict=True):
        # Where links cannot be made, files are copied, by their own names.
        if path.is_symlink() and path.resolve().name != file.checksum.value:
            raise FetchFailed(str(source), f"{file.name} has changed meanwhile; try again")
    return paths


def _cached(lib: ModuleType, source: HubSource, hub: Hub, why: str) -> Path:
    """What the cache has of it. Raises FetchFailed."""
    names = cached_files(lib, source, hub)
    try:
        if not names:
            raise NoSuchModel("and it is not in the cache")
        first = names[choose(source, list(names))[0]]
    except NoSuchModel as error:
        raise FetchFailed(str(source), f"{why}, {error.reason}") from None
    logger.warning("%s: %s; using what is in the cache", source, why)
    return first


def cached_files(lib: ModuleType, source: HubSource, hub: Hub) -> dict[str, Path]:
    """The files that the cache has of a repository's revision."""
    revision = source.revision or "main"
    try:
        info = lib.scan_cache_dir(hub.cache)
    except lib.CacheNotFound:
        return {}
    return {
        file.file_path.relative_to(known.snapshot_path).as_posix(): file.file_path
        for repo in info.repos
        if repo.repo_type == "model" and repo.repo_id == source.repo
        for known in repo.revisions
        if revision in known.refs or revision == known.commit_hash
        for file in known.files
    }


class Progress:
    """That of several files, as of one."""

    def __init__(self, report: OnProgress | None, sizes: list[int | None]) -> None:
        self._report = report
        self._sizes = sizes
        self._index = 0

    def next(self) -> None:
        self._index += 1

    def __call__(self, done: int, total: int | None) -> None:
        if self._report is None:
            return
        if len(self._sizes) > 1:
            known = [size for size in self._sizes if size is not None]
            total = sum(known) if len(known) == len(self._sizes) else None
            done += sum(size or 0 for size in self._sizes[: self._index])
        self._report(done, total)
