"""``python -m openai_local`` and ``openai-local``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from openai_local.cli.program import program
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit(f"{error.name} is missing: pip install 'openai-local[server]'")
    program(prog_name="openai-local")


if __name__ == "__main__":
    main()
