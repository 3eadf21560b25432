"""``doctor``: what is broken or slow with this machine and this installation, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from openai_local.cli.diagnosis import Finding, examine
from openai_local.cli.failures import FAILED
from openai_local.cli.options import all_fields, takes_settings
from openai_local.cli.screen import harmless, out, print_json

cli = typer.Typer(add_completion=False, rich_markup_mode=None)

MARKS = {"ok": "[green]ok    [/green]", "slow": "[yellow]slow  [/yellow]"}
MARKS["broken"] = "[red]broken[/red]"


@cli.command()
@takes_settings(all_fields())
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    **settings: Any,
) -> None:
    """Say what is broken or slow here, and why, with the settings that a server would have.

    Takes about a second, and loads no model. The exit status is 1 if something is broken.
    """
    report = examine(settings)
    if as_json:
        print_json([asdict(finding) for finding in report.findings])
    else:
        console = out()
        for finding in report.findings:
            console.print(_line(finding), soft_wrap=True)
    if report.is_broken:
        raise typer.Exit(FAILED)


def _line(finding: Finding) -> str:
    line = f"{MARKS[finding.level]}  {finding.topic}: {escape(harmless(finding.text))}"
    return f"{line}\n        {escape(finding.advice)}" if finding.advice else line
