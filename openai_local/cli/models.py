"""``models``: what there is, what it is, fetching and removing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from openai_local.cli.completion import complete_models
from openai_local.cli.failures import CommandFailed
from openai_local.cli.inventory import find_file, inventory, source_of
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
    """List the models of the settings, the packaged one, and what was downloaded."""
    entries = list(inventory(load_settings(**settings)))
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "size", "known by", "path"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "size")
    for entry in entries:
        n_bytes = "not here" if entry.n_bytes is None else size(entry.n_bytes)
        name, path = (escape(harmless(text)) for text in (entry.name, entry.path))
        table.add_row(name, n_bytes, entry.place, path)
    out().print(table)


@cli.command()
@takes_settings(("config", "models_dir", *ModelOptions.model_fields))
def show(model: Model, as_json: Json = False, **settings: Any) -> None:
    """Show what a model is, and the memory it takes with the settings. Loads nothing."""
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
def pull(model: Model) -> None:
    """Fetch a model of the hub or of a URL into the cache. What was begun goes on."""
    source = source_of(model)
    with _progress(str(source).rpartition("/")[2]) as on_progress:
        path = fetch(source, on_progress=on_progress)
    out().out(str(path))


@cli.command()
def rm(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="As list shows what was downloaded.",
            autocompletion=complete_models,
        ),
    ],
) -> None:
    """Remove what was downloaded of models. Files that were not, are left alone."""
    for model in models:
        try:
            freed = remove(source_of(model))
        except ValueError as error:
            raise CommandFailed(str(error)) from None
        if not freed:
            raise CommandFailed(f"nothing of {model} was downloaded")
        out().out(f"{model}: {size(freed)} are free again")


@contextmanager
def _progress(name: str) -> Iterator[OnProgress]:
    """A bar on a terminal's standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    console = err()
    with Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(escape(harmless(name)), total=None)

        def on_progress(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

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
