"""``config show``: every setting, and where it comes from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from rich.markup import escape
from rich.table import Table

from openai_local.cli.options import all_fields, is_size, takes_settings
from openai_local.cli.origins import Effective, effective
from openai_local.cli.screen import out, print_json

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@cli.callback()
def _group() -> None:
    """Show the settings, and where each comes from."""


@cli.command()
@takes_settings(all_fields())
def show(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    **settings: Any,
) -> None:
    """Show the settings that a server started so would have, and where each comes from.

    The first that sets one is right: an option, a variable of the environment, the file that the
    setting config names, the default. Loads no model.
    """
    rows = list(effective(settings))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        source = f"{row.origin}: {row.where}" if row.where else row.origin
        table.add_row(
            row.name, escape(_value(row)), escape(source), style="" if row.where else "dim"
        )
    out().print(table)


def _value(row: Effective) -> str:
    if row.value is None:
        return row.becomes or ""
    if isinstance(row.value, list):
        return ", ".join(row.value)
    if is_size(row.name.rpartition(".")[2]):
        return ByteSize(row.value).human_readable()
    return str(row.value).lower() if isinstance(row.value, bool) else str(row.value)
