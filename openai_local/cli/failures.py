"""What a command ends with when it cannot do its work: one line and an exit status."""

from __future__ import annotations

FAILED = 1
USAGE = 2
INTERRUPTED = 130

# What the command line needs beside the package's own dependencies.
EXTRA = ("httpx", "rich", "typer", "uvicorn")


class CommandFailed(Exception):
    """The message is all that the user needs."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def explain(error: Exception) -> tuple[str, int]:
    """A line and an exit status for any error."""
    usage = getattr(error, "format_message", None)  # typer's own, in all its versions
    if usage is not None:
        path = getattr(getattr(error, "ctx", None), "command_path", "openai-local")
        said = usage().rstrip(".")
        return one_line(f"{said}. Try '{path} --help'."), getattr(error, "exit_code", USAGE)
    if isinstance(error, CommandFailed):
        return one_line(str(error)), error.status
    if type(error).__module__.startswith("openai_local."):
        return one_line(str(error)), USAGE if type(error).__name__ == "ConfigError" else FAILED
    if isinstance(error, ModuleNotFoundError) and _top(error) in EXTRA:
        return f"{error.name} is missing: pip install 'openai-local[server]'", FAILED
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", FAILED
    name = type(error).__name__
    return one_line(f"unexpected {name}: {error}; --debug shows the traceback"), FAILED


def _top(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def one_line(text: str) -> str:
    """``text`` without line breaks and control characters, which may come from elsewhere."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    return " ".join(words)
