"""The models that there are: those of the settings, the packaged one, and what was downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openai_local.cli.failures import CommandFailed
from openai_local.config import Settings
from openai_local.models.cached import list_cached
from openai_local.models.catalog import Catalog
from openai_local.models.fetch import fetch
from openai_local.models.files import SMOLLM2_ID, packaged_smollm2
from openai_local.models.hub import Hub
from openai_local.models.sources import (
    HubSource,
    InvalidSource,
    ModelSource,
    WebSource,
    parse_source,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """``name`` is what to give to a command; ``place`` says how it comes to be known. ``n_bytes``
    is None for what is not here."""

    name: str
    place: str
    path: str
    n_bytes: int | None


def inventory(settings: Settings) -> Iterator[Entry]:
    """Raises ConfigError."""
    configured = _configured(settings)
    for name, source in configured.items():
        yield _entry(name, "settings", source)
    if settings.models_dir is not None:
        for spec in Catalog(settings).list():
            if spec.id not in configured and callable(spec.file):
                yield _entry(spec.id, "models_dir", spec.file())
    packaged = packaged_smollm2()
    if packaged is not None:
        yield _entry(SMOLLM2_ID, "packaged", packaged)
    for model in list_cached():
        yield Entry(model.source, "downloaded", str(model.path), model.n_bytes)


def find_file(word: str, settings: Settings) -> Path:
    """Of a name in the settings, of what was downloaded, or a path. Raises CommandFailed, and what
    a source that names no model raises."""
    for entry in inventory(settings):
        if entry.name == word and entry.n_bytes is not None:
            return Path(entry.path)
    # What is here is found without asking anybody.
    return fetch(source_of(word, settings), hub=Hub(offline=True))


def source_of(word: str, settings: Settings) -> ModelSource:
    """What a name in the settings or another word means. Raises CommandFailed."""
    source = _configured(settings).get(word, word)
    try:
        return parse_source(source) if isinstance(source, str) else source
    except InvalidSource as error:
        raise CommandFailed(str(error)) from None


def downloaded_source(word: str, settings: Settings) -> HubSource | WebSource | None:
    """As :func:`source_of`, of what can be downloaded; None for a file that is here. Raises
    CommandFailed for what is neither."""
    source = source_of(word, settings)
    if not isinstance(source, Path):
        return source
    if source.is_file() or word == SMOLLM2_ID and packaged_smollm2() is not None:
        return None
    raise CommandFailed(
        f"{word} is no file and no name in the settings; models come from hf:owner/repo or https://"
    )


def _configured(settings: Settings) -> dict[str, ModelSource]:
    named: dict[str, ModelSource] = {id: table.path for id, table in settings.models.items()}
    for model, id in (
        (settings.model, settings.model_id),
        (settings.embedding_model, settings.embedding_model_id),
    ):
        if model is not None:
            named[id or str(model)] = model
    return named


def _entry(name: str, place: str, source: ModelSource) -> Entry:
    try:
        n_bytes = source.stat().st_size if isinstance(source, Path) else None
    except OSError:
        n_bytes = None
    return Entry(name, place, str(source), n_bytes)
