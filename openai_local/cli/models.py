"""``models``: what there is, what it is, fetching and removing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from openai_local.cli.completion import complete_downloads, complete_models
from openai_local.cli.failures import CommandFailed
from openai_local.cli.inventory import Entry, downloaded_source, find_file, inventory
from openai_local.cli.options import takes_settings
from openai_local.cli.screen import err, harmless, out, print_json, size
from openai_local.config import ModelOptions, load_settings
from openai_local.models.cached import Description, describe, remove
from openai_local.models.download import OnProgress
from openai_local.models.fetch import fetch

cli = typer.Typer(add_completion=False, rich_markup_mode=None)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name in the settings, a GGUF file, hf:owner/repo[:quantisation], or an https URL.",
        autocompletion=complete_models,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@cli.callback()
def _group() -> None:
    """List, show, fetch and remove models."""


@cli.command("list")
@takes_settings(("config", "models_dir"))
def list_models(as_json: Json = False, **settings: Any) -> None:
    """List the models that there are.

    Those of the settings, the packaged one, and what was downloaded.
    """
    entries = list(inventory(load_settings(**settings)))
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    console = out()
    if console.is_terminal:
        # The name last and whole, however narrow the terminal: it is copied. Paths are for show.
        width = max((len(entry.place) for entry in entries), default=0)
        for entry in entries:
            row = f"{_size(entry):>9}  {entry.place:<{width}}  {harmless(entry.name)}"
            console.out(row, style=None if entry.n_bytes is not None else "dim")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "size", "known by", "path"):
        table.add_column(heading)
    for entry in entries:
        table.add_row(escape(entry.name), _size(entry), entry.place, escape(entry.path))
    console.print(table)


def _size(entry: Entry) -> str:
    return "not here" if entry.n_bytes is None else size(entry.n_bytes)


@cli.command()
@takes_settings(("config", "models_dir", *ModelOptions.model_fields))
def show(model: Model, as_json: Json = False, **settings: Any) -> None:
    """Show what a model is and takes.

    The memory is that with the settings. Loads nothing.
    """
    loaded = load_settings(**settings)
    path = find_file(model, loaded)
    table = loaded.models.get(model)
    facts = _facts(describe(path, loaded.engine(path, table)))
    if as_json:
        print_json(facts)
        return
    console = out()
    for name, value in facts.items():
        if value is not None:
            console.out(f"{name + ':':<18}{harmless(_words(name, value))}")


@cli.command()
@takes_settings(("config",))
def pull(model: Model, **settings: Any) -> None:
    """Fetch a model into the cache. What was begun goes on."""
    loaded = load_settings(**settings)
    source = downloaded_source(model, loaded)
    if source is None:
        out().out(str(find_file(model, loaded)))
        return
    try:
        with _progress(str(source).rpartition("/")[2]) as on_progress:
            path = fetch(source, on_progress=on_progress)
    except KeyboardInterrupt:
        err().out("what has come is kept; the same command goes on from there")
        raise
    out().out(str(path))


@cli.command()
@takes_settings(("config",))
def rm(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="As list shows what was downloaded.",
            autocompletion=complete_downloads,
        ),
    ],
    **settings: Any,
) -> None:
    """Remove downloaded models. No other files are touched."""
    loaded = load_settings(**settings)
    for model in models:
        source = downloaded_source(model, loaded)
        if source is None:
            raise CommandFailed(f"{find_file(model, loaded)} was not downloaded: yours to delete")
        freed = remove(source)
        if not freed:
            raise CommandFailed(f"nothing of {model} was downloaded")
        out().out(f"{model}: {size(freed)} are free again")


class _Speed(ProgressColumn):
    """In the units of the sizes beside it."""

    def render(self, task: Task) -> Text:
        return Text(f"{size(task.speed)}/s" if task.speed else "")


@contextmanager
def _progress(name: str) -> Iterator[OnProgress]:
    """A bar on a terminal's standard error, once something comes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    console = err()
    with Progress(
        *columns, _Speed(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(escape(harmless(name)), total=None, visible=False)

        def on_progress(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        yield on_progress


def _facts(about: Description) -> dict[str, Any]:
    """As JSON has them; sizes in bytes and tokens."""
    header, memory = about.header, about.memory
    return {
        "path": str(header.path),
        "name": header.name,
        "architecture": header.architecture,
        "purpose": header.purpose,
        "quantization": header.quantization,
        "n_params": header.n_params,
        "file_bytes": header.n_bytes,
        "n_parts": header.n_parts,
        "n_layers": header.n_layers,
        "n_ctx_train": header.n_ctx_train,
        "n_embd": header.n_embd,
        "n_vocab": header.n_vocab,
        "licence": header.licence,
        "abilities": None if about.abilities is None else list(about.abilities),
        "no_chat": about.no_chat or None,
        "n_ctx": memory.plan.n_ctx,
        "n_parallel": memory.plan.n_parallel,
        "weights_bytes": memory.n_weights,
        "kv_bytes": memory.n_kv,
        "compute_bytes": memory.n_compute,
        "total_bytes": memory.n_total,
    }


def _words(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return size(value)
    if name == "n_params":
        return f"{value / 1e9:.2f} billion" if value >= 1e9 else f"{value / 1e6:.0f} million"
    return ", ".join(value) if isinstance(value, list) else str(value)
