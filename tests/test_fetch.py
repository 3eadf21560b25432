"""Files from URLs: they go on where they were cut off, and are there only if they are right."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, serve, sha256

from openai_local.engine.errors import ModelLoadFailed
from openai_local.models import download as module
from openai_local.models.download import Checksum, Download, FetchFailed, download
from openai_local.models.fetch import fetch, web_file
from openai_local.models.hub import Hub
from openai_local.models.sources import parse_source

DATA = bytes(range(256)) * 12_000  # three megabytes


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve() as server:
        server.plain = {"m.gguf": DATA}
        yield server


def task(server: HubServer, directory: Path, *, checked: bool = True) -> Download:
    checksum = Checksum(sha256(DATA)) if checked else None
    url, target = f"{server.url}/plain/m.gguf", directory / "m.gguf"
    return Download(url, target, "the file", checksum=checksum, pause_s=0)


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("checked", [True, False])
def test_a_broken_transfer_goes_on_where_it_was(
    server: HubServer, tmp_path: Path, checked: bool
) -> None:
    server.cut = [1_000_000, 500_000]
    seen: list[tuple[int, int | None]] = []
    download(task(server, tmp_path, checked=checked), lambda *progress: seen.append(progress))
    assert (tmp_path / "m.gguf").read_bytes() == DATA
    assert [h.get("range") for h in server.transfers()] == [
        None,
        "bytes=1000000-",
        "bytes=1500000-",
    ]
    assert seen[0] == (0, len(DATA)) and seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert left(tmp_path) == ["m.gguf", "m.gguf.lock"]


@pytest.mark.parametrize("checked", [True, False])
def test_an_interrupted_download_goes_on_the_next_time(
    server: HubServer, tmp_path: Path, checked: bool
) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done > 1_500_000:
            raise Stop

    what = task(server, tmp_path, checked=checked)
    with pytest.raises(Stop):
        download(what, stop)
    there = what.partial.stat().st_size
    assert there >= 1_500_000 and not what.target.exists()
    download(what)
    assert what.target.read_bytes() == DATA
    assert server.transfers()[-1]["range"] == f"bytes={there}-"


def test_a_process_that_is_killed_leaves_what_it_has(server: HubServer, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from openai_local.models.fetch import fetch;"
        "from openai_local.models.sources import parse_source;"
        "stop = lambda done, total: os._exit(9) if done > 1_000_000 else None;"
        "fetch(parse_source(sys.argv[1]), on_progress=stop, cache=Path(sys.argv[2]))"
    )
    url = f"{server.url}/plain/m.gguf#sha256={sha256(DATA)}"
    assert subprocess.run([sys.executable, "-c", code, url, str(tmp_path)]).returncode == 9
    path = fetch(parse_source(url), cache=tmp_path)
    assert path.read_bytes() == DATA
    assert "range" in server.transfers()[-1]


@pytest.mark.parametrize("checked", [True, False])
def test_a_file_that_changed_meanwhile_begins_again(
    server: HubServer, tmp_path: Path, checked: bool
) -> None:
    what = task(server, tmp_path, checked=False)
    server.cut = [1_000_000]
    server.statuses = []
    with pytest.raises(FetchFailed):
        module._Transfer(what, _stop_after_cut()).run()
    other = DATA[::-1]
    server.plain["m.gguf"] = other
    download(what)
    assert what.target.read_bytes() == other


def _stop_after_cut() -> module.OnProgress:
    def report(done: int, total: int | None) -> None:
        if done:
            raise FetchFailed("x", "enough")

    return report


@pytest.mark.parametrize("weak", [True, False])
def test_without_a_validator_or_checksum_nothing_is_gone_on_with(
    server: HubServer, tmp_path: Path, weak: bool
) -> None:
    server.etag, server.weak = weak, weak
    server.cut = [1_000_000]
    download(task(server, tmp_path, checked=False))
    assert [h.get("range") for h in server.transfers()] == [None, None]


def test_a_server_without_ranges_begins_again(server: HubServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cut = [1_000_000]
    what = task(server, tmp_path)
    download(what)
    assert what.target.read_bytes() == DATA
    assert len(server.transfers()) == 2


def test_what_has_another_checksum_is_not_kept(server: HubServer, tmp_path: Path) -> None:
    server.spoil = lambda data: data[:-1] + b"x"
    with pytest.raises(FetchFailed, match="its checksum is") as failure:
        download(task(server, tmp_path))
    assert isinstance(failure.value, ModelLoadFailed)
    assert left(tmp_path) == ["m.gguf.lock"]
    server.spoil = lambda data: data
    download(task(server, tmp_path))


def test_a_longer_file_than_was_known_is_refused(server: HubServer, tmp_path: Path) -> None:
    what = Download(f"{server.url}/plain/m.gguf", tmp_path / "m", "it", n_bytes=5, pause_s=0)
    with pytest.raises(FetchFailed, match="not 5"):
        download(what)


def test_a_file_of_unknown_length_needs_a_checksum(server: HubServer, tmp_path: Path) -> None:
    server.lengths = False
    with pytest.raises(FetchFailed, match="neither its length nor a checksum"):
        download(task(server, tmp_path, checked=False))
    download(task(server, tmp_path))
    assert (tmp_path / "m.gguf").read_bytes() == DATA


def test_what_passes_is_tried_again_and_what_does_not_is_not(
    server: HubServer, tmp_path: Path
) -> None:
    server.statuses = [503, 429, 500]
    download(task(server, tmp_path))
    assert len(server.transfers()) == 4
    (tmp_path / "m.gguf").unlink()
    server.statuses = [503] * 9
    with pytest.raises(FetchFailed, match="answers 503"):
        download(task(server, tmp_path))
    server.statuses = [403]
    with pytest.raises(FetchFailed, match=r"denied \(403\)"):
        download(task(server, tmp_path))
    server.statuses = []
    del server.plain["m.gguf"]
    with pytest.raises(FetchFailed, match=r"no such file \(404\)"):
        download(task(server, tmp_path))


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    what = Download("http://127.0.0.1:9/m.gguf", tmp_path / "m", "it", pause_s=0)
    with pytest.raises(FetchFailed, match="cannot get it: the connection failed") as failure:
        download(what)
    assert "\n" not in str(failure.value)


def test_a_disk_without_room_is_told_before_anything_is_written(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(FetchFailed, match="takes 0.00 GB more"):
        download(task(server, tmp_path))
    assert "m.gguf.incomplete" not in left(tmp_path)


def test_a_disk_that_fills_up_is_told(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchFailed, match=f"the disk of {tmp_path} is full"):
        download(task(server, tmp_path))


def test_two_processes_download_once(server: HubServer, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from openai_local.models.fetch import fetch;"
        "from openai_local.models.sources import parse_source;"
        "sys.stdout.write(str(fetch(parse_source(sys.argv[1]), cache=Path(sys.argv[2]))))"
    )
    url = f"{server.url}/plain/m.gguf#sha256={sha256(DATA)}"
    command = [sys.executable, "-c", code, url, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0] for process in both}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == DATA
    assert len(server.transfers()) == 1


def test_a_token_stays_with_its_host(server: HubServer, tmp_path: Path) -> None:
    for url in (f"{server.url}/moved/m.gguf", f"{server.url}/plain/m.gguf"):
        download(Download(url, tmp_path / "m", "it", headers={"Authorization": "Bearer t"}))
        assert server.transfers()[-1]["authorization"] == "Bearer t"
        (tmp_path / "m").unlink()


def test_a_redirect_to_a_connection_that_others_read_is_refused(tmp_path: Path) -> None:
    redirects = module._Redirects(Download("https://h/m.gguf", tmp_path / "m", "it"))
    request = urllib.request.Request("https://h/m.gguf")
    with pytest.raises(FetchFailed, match="it is redirected to http"):
        redirects.redirect_request(request, io.BytesIO(), 302, "", {}, "http://h/m.gguf")
    there = redirects.redirect_request(request, io.BytesIO(), 302, "", {}, "https://cdn/m.gguf")
    assert there is not None and there.full_url == "https://cdn/m.gguf"


def test_a_url_is_fetched_once_and_then_found_without_asking(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = parse_source(f"{server.url}/plain/m.gguf")
    with caplog.at_level(logging.WARNING, "openai_local"):
        path = fetch(source, cache=tmp_path)
    assert f"#sha256={sha256(DATA)}" in caplog.text
    n_requests = len(server.requests)
    assert fetch(source, cache=tmp_path, hub=Hub(offline=True)) == path
    checked = parse_source(f"{server.url}/plain/m.gguf#sha256={sha256(DATA)}")
    assert fetch(checked, cache=tmp_path) == path
    assert len(server.requests) == n_requests
    record = web_file(path)
    assert record is not None and record.sha256 == sha256(DATA)


def test_a_url_with_another_checksum_than_the_cache_is_fetched_again(
    server: HubServer, tmp_path: Path
) -> None:
    path = fetch(parse_source(f"{server.url}/plain/m.gguf"), cache=tmp_path)
    server.plain["m.gguf"] = b"other"
    again = parse_source(f"{server.url}/plain/m.gguf#sha256={sha256(b'other')}")
    assert fetch(again, cache=tmp_path) == path and path.read_bytes() == b"other"
    path.write_bytes(b"spoilt")
    assert fetch(again, cache=tmp_path).read_bytes() == b"other"


def test_all_parts_of_a_split_file_come(server: HubServer, tmp_path: Path) -> None:
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    server.plain = {name: name.encode() for name in names}
    sums = ",".join(sha256(name.encode()) for name in names)
    path = fetch(parse_source(f"{server.url}/plain/{names[0]}#sha256={sums}"), cache=tmp_path)
    assert [path.with_name(name).read_text() for name in names] == names


def test_offline_says_so(tmp_path: Path) -> None:
    source = parse_source("https://models.example/m.gguf")
    with pytest.raises(FetchFailed, match="offline, and it is not in the cache"):
        fetch(source, cache=tmp_path, hub=Hub(offline=True))


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert fetch(tmp_path / "m.gguf") == tmp_path / "m.gguf"


def test_a_damaged_record_is_as_none(server: HubServer, tmp_path: Path) -> None:
    source = parse_source(f"{server.url}/plain/m.gguf")
    path = fetch(source, cache=tmp_path)
    for text in ("", "[]", json.dumps({"n_bytes": 1})):
        path.with_name("m.gguf.json").write_text(text)
        assert web_file(path) is None
    assert fetch(source, cache=tmp_path).read_bytes() == DATA
