"""For a command line: what is in the caches, what a model file is, and how to be rid of it.

Plain functions over plain data; nothing is printed, nothing is loaded, and nobody is asked:

    for model in list_cached():                # models list
        print(model.source, model.n_bytes, model.path)
    about = describe(path, EngineConfig(path)) # models show
    fetch(parse_source(text), on_progress=…)   # models pull, in fetch.py
    freed = remove(parse_source(text))         # models rm
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock, Timeout

from openai_local.engine.config import EngineConfig
from openai_local.engine.gguf.file import part_of
from openai_local.models.estimate import MemoryEstimate, estimate
from openai_local.models.fetch import downloads, web_file
from openai_local.models.gguf_file import GgufHeader, read_header
from openai_local.models.hub import Hub
from openai_local.models.hub_files import NoSuchModel, choose, model_files, parts
from openai_local.models.sources import HubSource, ModelSource, WebSource


@dataclass(frozen=True, slots=True)
class CachedModel:
    """``source`` as a setting would say it; ``n_bytes`` of all its parts, ``path`` of the first."""

    source: str
    path: Path
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """``abilities`` are what the chat template can render; None where there is none, or it fails:
    then ``no_chat`` says why."""

    header: GgufHeader
    memory: MemoryEstimate
    abilities: tuple[str, ...] | None
    no_chat: str


def list_cached(hub: Hub | None = None, cache: Path | None = None) -> list[CachedModel]:
    """The models in the hub's cache and among the downloads, by source. Whole ones only."""
    found = [*_of_hub(hub or Hub()), *_of_urls(cache or downloads())]
    return sorted(found, key=lambda model: model.source)


def remove(source: ModelSource, hub: Hub | None = None, cache: Path | None = None) -> int:
    """Delete a cached model, all its parts; returns the bytes that are free now, 0 if there was
    none. A file that was not downloaded is not touched: for a path, raises ValueError."""
    if isinstance(source, WebSource):
        return _remove_url(source, cache or downloads())
    if isinstance(source, HubSource):
        return _remove_hub(source, hub or Hub())
    raise ValueError(f"{source} was not downloaded: it is yours to delete")


def describe(path: Path, config: EngineConfig | None = None) -> Description:
    """What the model at ``path`` is, and what it would take with ``config``. Raises InvalidGguf."""
    header = read_header(path)
    memory = estimate(header, config or EngineConfig(path))
    if header.chat_template is None:
        return Description(header, memory, None, "it has no chat template")
    try:
        return Description(header, memory, _abilities(header), "")
    except Exception as error:  # a template is a program of somebody else
        return Description(header, memory, None, f"its chat template fails: {error}")


def _abilities(header: GgufHeader) -> tuple[str, ...]:
    from openai_local.chat.template import ChatTemplate

    assert header.chat_template is not None, "asked for with a template only"
    template = ChatTemplate(
        header.chat_template, bos_token=header.bos_token, eos_token=header.eos_token
    )
    traits = template.traits
    able = {
        "system": traits.system_role,
        "developer": traits.developer_role,
        "tools": traits.tools,
        "parallel tool calls": traits.parallel_tool_calls,
        "thinking": traits.thought_beside_content or traits.thought_beside_calls,
    }
    return tuple(name for name, can in able.items() if can)


def _of_hub(hub: Hub) -> Iterator[CachedModel]:
    for repo in _repositories(hub):
        for revision in repo.revisions:
            files = _files(revision)
            for first in model_files(files):
                try:
                    names = parts(first, files)
                except NoSuchModel:
                    continue  # some of its parts are elsewhere, or not yet here
                known = "" if "main" in revision.refs else f"@{_name(revision)}"
                n_bytes = sum(files[name].size_on_disk for name in names)
                text = f"hf:{repo.repo_id}{known}:{first}"
                yield CachedModel(text, files[first].file_path, n_bytes)


def _repositories(hub: Hub) -> list[Any]:
    try:
        import huggingface_hub as lib
    except ImportError:
        return []
    try:
        repos = lib.scan_cache_dir(hub.cache).repos
    except lib.CacheNotFound:
        return []
    return [repo for repo in repos if repo.repo_type == "model"]


def _files(revision: Any) -> dict[str, Any]:
    """The cached files of a revision by their names in the repository."""
    root = revision.snapshot_path
    return {file.file_path.relative_to(root).as_posix(): file for file in revision.files}


def _name(revision: Any) -> str:
    return str(min(revision.refs, default=revision.commit_hash))


def _remove_hub(source: HubSource, hub: Hub) -> int:
    wanted = source.revision or "main"
    freed = 0
    for repo in _repositories(hub):
        if repo.repo_id != source.repo:
            continue
        kept = {f.blob_path for r in repo.revisions for f in r.files if not _is(r, wanted)}
        for revision in repo.revisions:
            if not _is(revision, wanted):
                continue
            files = _files(revision)
            try:
                names = choose(source, list(files))
            except NoSuchModel:
                continue
            for name in names:
                files[name].file_path.unlink(missing_ok=True)
                blob = files[name].blob_path
                if blob not in kept and blob.exists():
                    freed += blob.stat().st_size
                    blob.unlink()
        if not any(path.is_file() for path in (repo.repo_path / "snapshots").rglob("*")):
            shutil.rmtree(repo.repo_path, ignore_errors=True)
    return freed + _remove_begun(source, hub)


def _remove_begun(source: HubSource, hub: Hub) -> int:
    """What was begun of it and is not whole. Nothing of what a process downloads now."""
    freed = 0
    begun = dict(_begun(source, hub))
    try:
        names = choose(source, list(begun))
    except NoSuchModel:
        return 0
    for name in names:
        validator, partial = begun[name], begun[name].with_suffix("")
        lock = FileLock(_lock(partial), timeout=0)
        try:
            with lock:
                freed += partial.stat().st_size
                partial.unlink()
                validator.unlink()
        except (OSError, Timeout):
            continue
    return freed


def _begun(source: HubSource, hub: Hub) -> Iterator[tuple[str, Path]]:
    """Names of files in the repository, and what was written beside the parts that came of them."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return
    cache = Path(hub.cache or HF_HUB_CACHE)
    folder = cache / ("models--" + source.repo.replace("/", "--"))
    for path in sorted((folder / "blobs").glob("*.incomplete.json")):
        try:
            url = str(json.loads(path.read_text())["url"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        _, _, name = url.partition("/resolve/")[2].partition("/")
        yield unquote(name), path


def _lock(partial: Path) -> Path:
    """The hub's own, of a blob."""
    folder = partial.parent.parent
    return folder.parent / ".locks" / folder.name / f"{partial.stem}.lock"


def _is(revision: Any, wanted: str) -> bool:
    return wanted in revision.refs or wanted == revision.commit_hash


def _of_urls(cache: Path) -> Iterator[CachedModel]:
    for path in cache.glob("*/*.gguf"):
        part = part_of(path)
        if part is not None and part[1] != 1:
            continue
        try:
            names = parts(path.name, [other.name for other in path.parent.iterdir()])
        except NoSuchModel:
            continue
        records = [web_file(path.with_name(name)) for name in names]
        known = [record for record in records if record is not None]
        if len(known) == len(names):
            sums = ",".join(record.sha256 for record in known)
            n_bytes = sum(record.path.stat().st_size for record in known)
            yield CachedModel(f"{known[0].url}#sha256={sums}", path, n_bytes)


def _remove_url(source: WebSource, cache: Path) -> int:
    folder = cache / hashlib.sha256(source.url.encode()).hexdigest()[:16]
    freed = sum(path.stat().st_size for path in folder.glob("*.gguf*"))
    shutil.rmtree(folder, ignore_errors=True)
    return freed
