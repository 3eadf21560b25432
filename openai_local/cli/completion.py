"""What a shell completes with: the names of models, and the values of options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def complete_models(incomplete: str) -> list[str]:
    """GGUF files and directories that begin so, or what was downloaded."""
    if incomplete.startswith(("hf:", "http:", "https:")):
        return complete_downloads(incomplete)
    return sorted(set(_files(incomplete)))


def complete_downloads(incomplete: str) -> list[str]:
    """What was downloaded and begins so."""
    from openai_local.models.cached import list_cached  # asks the hub's library, if it is there

    return [model.source for model in list_cached() if model.source.startswith(incomplete)]


def _files(incomplete: str) -> Iterator[str]:
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    prefix = incomplete[: len(incomplete) - len(start)]
    try:
        entries = list(place.expanduser().iterdir())
    except OSError:
        return
    for entry in entries:
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if entry.is_dir():
            yield f"{prefix}{entry.name}/"
        elif entry.suffix == ".gguf":
            yield prefix + entry.name


def complete_values(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Those of ``values`` that begin so."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]
