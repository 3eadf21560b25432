"""A command in a terminal of its own: what it writes there is read, and keys are pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from servers import START_S, STOP_S, environment

CTRL_C, CTRL_D = "\x03", "\x04"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """``raw`` is all that was written so far; ``text`` the same without colours."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.raw = ""
        self._master = master

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def press(self, keys: str | bytes) -> None:
        """Ctrl-D only at a prompt: between two, nobody sees it."""
        os.write(self._master, keys if isinstance(keys, bytes) else keys.encode())

    def until(self, text: str, after: int = 0) -> int:
        """Wait for ``text`` beyond the first ``after`` characters; where it ends."""
        end = time.monotonic() + START_S
        while (at := self.text.find(text, after)) < 0:
            self._read_before(end, text, self.text[after:])
        return at + len(text)

    def until_raw(self, codes: str) -> None:
        """Wait for what only the terminal sees."""
        end = time.monotonic() + START_S
        while codes not in self.raw:
            self._read_before(end, codes, self.raw)

    def echoes(self) -> bool:
        """Whether it shows what is typed and gives a command whole lines, as a shell leaves it."""
        flags = termios.tcgetattr(self._master)[3]
        return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)

    def end(self) -> int:
        """Read all, and wait; the exit status."""
        end = time.monotonic() + STOP_S
        while self._read():
            assert time.monotonic() < end, f"it does not end: {self.text[-500:]!r}"
        return self.process.wait(STOP_S)

    def _read_before(self, end: float, text: str, seen: str) -> None:
        assert time.monotonic() < end, f"no {text!r} in {seen!r}"
        assert self._read(), f"ended without {text!r}: {seen!r}"

    def _read(self) -> bool:
        """More of the output; False at its end."""
        if not select.select([self._master], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(
    command: Sequence[str], variables: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """``python`` with the arguments ``command``, in a terminal of 24 lines of 80 characters."""
    master, slave = pty.openpty()
    outer = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_LOCAL_")}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**outer, "TERM": "xterm", **environment(), **(variables or {})},
        preexec_fn=_take_terminal,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_S)
        os.close(master)


def _take_terminal() -> None:
    """So that Ctrl-C is a signal to the command."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
