"""Servers that send what they should not: each download ends, with a reason, and leaves nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_server import Repository, serve, sha256

from openai_local.models import download as module
from openai_local.models.download import Checksum, Download, FetchFailed, download
from openai_local.models.fetch import fetch
from openai_local.models.hub import Hub
from openai_local.models.sources import parse_source

DATA = bytes(range(256)) * 40
Answer = Callable[[str, socket.socket], None]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """The URL of a server that answers so to the head of each request."""

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,)).start()

    def one(connection: socket.socket) -> None:
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            try:
                answer(head.decode(), connection)
            except OSError:
                pass  # the client has gone

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/m.gguf"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def response(status: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def always(data: bytes) -> Answer:
    return lambda head, connection: connection.sendall(data)


def task(url: str, directory: Path, *, checked: bool = True) -> Download:
    checksum = Checksum(sha256(DATA)) if checked else None
    return Download(url, directory / "m.gguf", "it", checksum=checksum, pause_s=0)


def refusal(url: str, directory: Path, *, checked: bool = True) -> str:
    with pytest.raises(FetchFailed) as failure:
        download(task(url, directory, checked=checked))
    assert not (directory / "m.gguf").exists()
    return failure.value.reason


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ("/m.gguf", "its redirects lead nowhere"),
        ("file:///etc/passwd", "its redirects lead nowhere"),
        ("ftp://127.0.0.1/m.gguf", "it is redirected to ftp"),
    ],
)
def test_a_redirect_that_leads_to_no_file_is_refused(
    tmp_path: Path, there: str, reason: str
) -> None:
    with answering(always(response("302 Found", Location=there))) as url:
        assert refusal(url, tmp_path) == reason


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Content_Type": "text/html; charset=utf-8"}, "a web page"),
        ({"Content_Encoding": "gzip"}, "compressed"),
    ],
)
def test_what_is_not_the_file_itself_is_refused(
    tmp_path: Path, headers: dict[str, str], reason: str
) -> None:
    with answering(always(response("200 OK", DATA, **headers))) as url:
        assert reason in refusal(url, tmp_path, checked=False)


def test_another_range_than_was_asked_for_begins_again(tmp_path: Path) -> None:
    def answer(head: str, connection: socket.socket) -> None:
        wrong = response("206 Partial Content", DATA[5:], Content_Range=f"bytes 5-{len(DATA)}/9")
        connection.sendall(wrong if "Range:" in head else response("200 OK", DATA))

    with answering(answer) as url:
        what = task(url, tmp_path)
        what.partial.write_bytes(DATA[:100])
        download(what)
    assert what.target.read_bytes() == DATA


def test_a_part_that_was_wrong_is_fetched_again(tmp_path: Path) -> None:
    with serve() as server:
        server.plain["m.gguf"] = DATA
        what = task(f"{server.url}/plain/m.gguf", tmp_path)
        what.partial.write_bytes(b"wrong")
        download(what)
        assert what.target.read_bytes() == DATA
        assert [h.get("range") for h in server.transfers()] == ["bytes=5-", None]


def dripping(head: str, connection: socket.socket) -> None:
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode())
    for byte in DATA:
        connection.sendall(bytes([byte]))
        time.sleep(0.01)


def test_what_comes_too_slowly_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_S", 0.1)
    with answering(dripping) as url:
        assert "bytes came in 0 s" in refusal(url, tmp_path)


def test_every_byte_may_be_the_last(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done >= 3:
            raise Stop

    with answering(dripping) as url, pytest.raises(Stop):
        download(task(url, tmp_path), stop)


def test_a_pause_before_another_attempt_can_be_ended(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        raise Stop

    what = Download("http://127.0.0.1:9/m.gguf", tmp_path / "m", "it", pause_s=600)
    with pytest.raises(Stop):
        download(what, stop)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serve() as server:
        server.plain["m.gguf"] = DATA
        source = parse_source(f"{server.url}/plain/m.gguf")
        with pytest.raises(FetchFailed, match="Not a directory|File exists"):
            fetch(source, cache=tmp_path / "file")


@pytest.mark.parametrize("name", ["../../m-Q4_K_M.gguf", "/tmp/m-Q4_K_M.gguf", "a//m-Q4_K_M.gguf"])
def test_a_file_outside_of_its_repository_is_none(tmp_path: Path, name: str) -> None:
    with serve() as server:
        server.repositories["o/n"] = Repository({name: DATA})
        with pytest.raises(FetchFailed, match="there is no GGUF model in it"):
            fetch(parse_source("hf:o/n"), hub=Hub(server.url, tmp_path))


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("lie", ["../../../m", "", sha256(DATA)[:-1]])
def test_a_checksum_that_is_none_is_refused(tmp_path: Path, lie: str, small: bool) -> None:
    with serve() as server:
        names = frozenset(["m.gguf"]) if small else frozenset()
        server.repositories["o/n"] = Repository({"m.gguf": DATA}, small=names, lies={"m.gguf": lie})
        with pytest.raises(FetchFailed, match=r"the hub tells no checksum of m.gguf"):
            fetch(parse_source("hf:o/n"), hub=Hub(server.url, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_commit_that_is_none_is_refused(tmp_path: Path) -> None:
    with serve() as server:
        server.repositories["o/n"] = Repository({"m.gguf": DATA}, commit="../../x")
        with pytest.raises(FetchFailed, match="the hub tells no commit"):
            fetch(parse_source("hf:o/n"), hub=Hub(server.url, tmp_path))
