"""One file over HTTP: it goes on where it was cut off, and is there only if it is right.

The standard library's client does it: what matters is what is on the disk, not on the wire, and a
host gets no dependency for it. Knows no hub and no model.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import filelock

from openai_local.engine.errors import ModelLoadFailed

logger = logging.getLogger(__name__)

# Bytes that are there, and of all, None where that is not known. What it raises ends the download,
# which goes on the next time.
OnProgress = Callable[[int, int | None], None]

CHUNK = 1 << 20
# As the hub's own. What is asked to stop stops within it.
TIMEOUT_S = 10.0
# In a row without a new byte; between them as many seconds, doubled each time.
MAX_FAILURES = 5
# What comes more slowly for so long is a connection that has failed.
MIN_BYTES_PER_S = 1 << 10
SLOW_S = 60.0
# Left free on the disk, for others.
SPARE_BYTES = 256 << 20

_BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError)
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))


class FetchFailed(ModelLoadFailed):
    """The model from ``source`` could not be had; ``reason`` says why."""

    def __init__(self, source: str, reason: str) -> None:
        Exception.__init__(self, f"cannot get {source}: {reason}")
        self.path = Path(source)
        self.reason = reason


class AccessDenied(FetchFailed):
    """The server wants a token, or another one."""


class WrongChecksum(FetchFailed):
    """What came is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """``git`` means the name that git gives to a file of these bytes, a SHA-1."""

    value: str
    git: bool = False

    def of(self, n_bytes: int) -> Any:
        return hashlib.sha1(b"blob %d\0" % n_bytes) if self.git else hashlib.sha256()


@dataclass(frozen=True, slots=True)
class Download:
    """What to get: ``shown`` is its name in messages. Headers are for the URL's own host."""

    url: str
    target: Path
    shown: str
    headers: Mapping[str, str] = field(default_factory=dict)
    checksum: Checksum | None = None
    n_bytes: int | None = None
    lock: Path | None = None
    pause_s: float = 1.0  # the first one between two attempts

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + ".incomplete")

    @property
    def validator_file(self) -> Path:
        return self.target.with_name(self.target.name + ".incomplete.json")


def download(what: Download, on_progress: OnProgress | None = None) -> None:
    """Have the file at its target; nothing is done if it is there.

    Several processes may ask at once: one downloads, the others wait for it. Raises FetchFailed;
    what has come so far stays for the next attempt, unless it was wrong.
    """
    try:
        what.target.parent.mkdir(parents=True, exist_ok=True)
        lock = what.lock or what.target.with_name(what.target.name + ".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):
            if not what.target.exists():
                _Transfer(what, on_progress).run()
    except OSError as error:
        if isinstance(error, urllib.error.URLError):
            raise FetchFailed(what.shown, str(error.reason)) from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk of {what.target.parent} is full" if full else str(error)
        raise FetchFailed(what.shown, reason) from None


class _Transfer:
    """Attempts at one file. Owns the partial file, under the lock."""

    def __init__(self, what: Download, on_progress: OnProgress | None) -> None:
        self._what = what
        self._report = on_progress or (lambda done, total: None)
        self._total = what.n_bytes
        self._done = 0

    def run(self) -> None:
        went_on = self._length() > 0
        self._transfer()
        try:
            self._finish()
        except WrongChecksum:
            if not went_on:
                raise
            # What was there may have been of something else, or of a program that leaves gaps.
            logger.warning(
                "%s: what was there of it is wrong; again from nothing", self._what.shown
            )
            self._transfer()
            self._finish()

    def _transfer(self) -> None:
        failures = 0
        while True:
            before = self._length()
            try:
                self._attempt()
                break
            except (*_BROKEN, urllib.error.URLError) as error:
                reason = self._why(error)
                failures = 1 if self._length() > before else failures + 1
                if failures >= MAX_FAILURES:
                    raise FetchFailed(self._what.shown, reason) from None
                pause = self._what.pause_s * 2 ** (failures - 1)
                logger.warning("%s: %s; again in %.0f s", self._what.shown, reason, pause)
                self._pause(pause)

    def _pause(self, seconds: float) -> None:
        """Told now and then, so that it can be ended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._report(self._length(), self._total)
            time.sleep(min(left, 0.5))

    def _length(self) -> int:
        try:
            return self._what.partial.stat().st_size
        except FileNotFoundError:
            return 0

    def _why(self, error: Exception) -> str:
        """The reason of a failure that may pass; raises FetchFailed for those that do not."""
        if not isinstance(error, urllib.error.HTTPError):
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            return f"the connection failed: {cause}"
        error.close()
        if error.code in _PASSING:
            return f"the server answers {error.code}"
        if error.code in (401, 403):
            raise AccessDenied(self._what.shown, f"access is denied ({error.code})") from None
        if error.code in (404, 410):
            raise FetchFailed(self._what.shown, f"there is no such file ({error.code})") from None
        if 300 <= error.code < 400:
            raise FetchFailed(self._what.shown, "its redirects lead nowhere") from None
        raise FetchFailed(self._what.shown, f"the server answers {error.code}") from None

    def _attempt(self) -> None:
        start, validator = self._length(), self._validator()
        if start and (validator is None or (self._total is not None and start > self._total)):
            start = 0
        if start and start == self._total:
            return
        try:
            response = self._open(start, validator)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                raise
            error.close()  # it has changed, and is shorter now
            self._discard()
            response = self._open(0, None)
        with response:
            start = self._begin(response, start)
            self._check_room(start)
            with self._what.partial.open("ab") as file:
                file.truncate(start)
                self._done = start
                self._copy(response, file)
                file.flush()
                os.fsync(file.fileno())

    def _open(self, start: int, validator: str | None) -> Any:
        headers = {"Accept-Encoding": "identity", "User-Agent": "openai_local"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator:
                headers["If-Range"] = validator
        request = urllib.request.Request(self._what.url, headers=headers)
        for name, value in self._what.headers.items():
            request.add_unredirected_header(name, value)
        opener = urllib.request.build_opener(_Redirects(self._what))
        return opener.open(request, timeout=TIMEOUT_S)

    def _begin(self, response: Any, start: int) -> int:
        """Where the file goes on with this response; learns its length and validator."""
        if response.headers.get_content_type() == "text/html":
            raise FetchFailed(self._what.shown, "the server sends a web page in its place")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise FetchFailed(self._what.shown, "the server sends it compressed")
        length = response.headers.get("Content-Length")
        total: int | None = int(length) if length and length.isdecimal() else None
        if response.status == 206:
            span = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or ""
            )
            if span is None or int(span[1]) != start:
                self._discard()  # it is not asked for a range again
                raise ConnectionError("the server answers with another range")
            total = None if span[2] == "*" else int(span[2])
        else:
            start = 0
        if self._what.n_bytes is not None and total not in (None, self._what.n_bytes):
            reason = f"the server has {total} bytes of it, not {self._what.n_bytes}"
            raise FetchFailed(self._what.shown, reason)
        self._total = total if total is not None else self._what.n_bytes
        if self._total is None and self._what.checksum is None:
            raise FetchFailed(self._what.shown, "neither its length nor a checksum is known")
        if start == 0:
            self._remember(response.headers)
        return start

    def _copy(self, response: Any, file: IO[bytes]) -> None:
        self._report(self._done, self._total)
        until_check = SPARE_BYTES // 2
        began, before = time.monotonic(), self._done
        # What is there is taken, not waited for until it is a whole chunk.
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            self._done += len(chunk)
            if (took := time.monotonic() - began) > SLOW_S:
                if (n := self._done - before) < MIN_BYTES_PER_S * took:
                    raise FetchFailed(self._what.shown, f"only {n} bytes came in {took:.0f} s")
                began, before = time.monotonic(), self._done
            until_check -= len(chunk)
            if until_check < 0:  # others write to the disk, too
                until_check = SPARE_BYTES // 2
                self._check_room(self._done)
            if self._total is not None and self._done > self._total:
                raise FetchFailed(self._what.shown, f"it is longer than {self._total} bytes")
            self._report(self._done, self._total)
        if self._total is not None and self._done < self._total:
            raise ConnectionError(f"it ended after {self._done} of {self._total} bytes")

    def _check_room(self, done: int) -> None:
        free = shutil.disk_usage(self._what.target.parent).free
        needed = (self._total or done) - done
        if free < needed + SPARE_BYTES:
            where = self._what.target.parent
            raise FetchFailed(
                self._what.shown,
                f"it takes {needed / 1e9:.2f} GB more, and {where} has {free / 1e9:.2f} GB",
            )

    def _finish(self) -> None:
        what, partial = self._what, self._what.partial
        if what.checksum is not None:
            found = digest(partial, what.checksum)
            if found != what.checksum.value:
                self._discard()
                reason = f"its checksum is {found}, not {what.checksum.value}"
                raise WrongChecksum(what.shown, reason)
        os.replace(partial, what.target)
        what.validator_file.unlink(missing_ok=True)

    def _discard(self) -> None:
        self._what.partial.unlink(missing_ok=True)
        self._what.validator_file.unlink(missing_ok=True)

    def _validator(self) -> str | None:
        """What tells that the file is still the one of which there is a part; empty where its
        checksum will tell."""
        if self._what.checksum is not None:
            return ""
        try:
            saved = json.loads(self._what.validator_file.read_text())
        except (OSError, ValueError):
            return None
        same = isinstance(saved, dict) and saved.get("url") == self._what.url
        validator = saved.get("validator") if same else None
        return validator if isinstance(validator, str) and validator else None

    def _remember(self, headers: Message) -> None:
        etag = headers.get("ETag", "")
        validator = "" if etag.startswith("W/") else etag
        saved = {"url": self._what.url, "validator": validator or headers.get("Last-Modified", "")}
        self._what.validator_file.write_text(json.dumps(saved))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http; headers such as a token stay with the host
    that they are for."""

    def __init__(self, what: Download) -> None:
        self._what = what

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        old, new = urlsplit(self._what.url), urlsplit(newurl)
        if new.scheme != "https" and (old.scheme == "https" or new.scheme != "http"):
            fp.close()
            raise FetchFailed(self._what.shown, f"it is redirected to {new.scheme}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            for name, value in self._what.headers.items():
                request.add_unredirected_header(name, value)
        return request


def digest(path: Path, checksum: Checksum) -> str:
    """The checksum that the file has, of the kind of another."""
    with path.open("rb") as file:
        hasher = checksum.of(os.fstat(file.fileno()).st_size)
        while block := file.read(CHUNK):
            hasher.update(block)
    return str(hasher.hexdigest())
