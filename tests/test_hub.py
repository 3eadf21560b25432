"""Models of the hub, from a server on the loopback that speaks its protocol."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, Repository, serve, sha256

from openai_local.models.download import FetchFailed
from openai_local.models.fetch import fetch
from openai_local.models.hub import Hub
from openai_local.models.sources import parse_source

Q4, Q8 = b"GGUF four" * 100_000, b"GGUF eight" * 100
FILES = {
    "README.md": b"# A model",
    "mmproj-F16.gguf": b"eyes",
    "model-Q4_K_M.gguf": Q4,
    "model-Q8_0.gguf": Q8,
    "BF16/model-BF16-00001-of-00002.gguf": b"one",
    "BF16/model-BF16-00002-of-00002.gguf": b"two",
}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve() as server:
        server.repositories["owner/name"] = Repository(dict(FILES), small=frozenset(["README.md"]))
        yield server


def hub_of(server: HubServer, cache: Path, token: str | None = None) -> Hub:
    return Hub(server.url, cache / "hub", token)


def get(text: str, hub: Hub) -> Path:
    return fetch(parse_source(text), hub=hub)


def refusal(text: str, hub: Hub) -> str:
    with pytest.raises(FetchFailed) as failure:
        get(text, hub)
    assert "\n" not in failure.value.reason
    return failure.value.reason


def test_a_model_comes_into_the_cache_that_the_hubs_library_reads(
    server: HubServer, tmp_path: Path
) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir

    hub = hub_of(server, tmp_path)
    path = get("hf:owner/name", hub)
    assert path.name == "model-Q4_K_M.gguf" and path.read_bytes() == Q4
    assert path.parent.name == COMMIT
    assert path.resolve() == tmp_path / "hub/models--owner--name/blobs" / sha256(Q4)
    theirs = hf_hub_download(
        "owner/name", path.name, cache_dir=tmp_path / "hub", local_files_only=True
    )
    assert Path(theirs) == path
    assert {repo.repo_id for repo in scan_cache_dir(tmp_path / "hub").repos} == {"owner/name"}
    assert len(server.transfers()) == 1
    # The lock is the one that its programs take.
    assert not list((tmp_path / "hub/models--owner--name/blobs").glob("*.lock"))
    assert (tmp_path / f"hub/.locks/models--owner--name/{sha256(Q4)}.lock").exists()


def test_what_the_hubs_library_has_downloaded_is_not_downloaded_again(
    server: HubServer, tmp_path: Path
) -> None:
    from huggingface_hub import hf_hub_download

    cache = tmp_path / "hub"
    hf_hub_download("owner/name", "model-Q8_0.gguf", cache_dir=cache, endpoint=server.url)
    n_transfers = len(server.transfers())
    assert get("hf:owner/name:q8_0", hub_of(server, tmp_path)).read_bytes() == Q8
    assert len(server.transfers()) == n_transfers


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("hf:owner/name:Q8_0", Q8),
        ("hf:owner/name@v1:Q8_0", Q8),
        (f"hf:owner/name@{COMMIT}:model-Q8_0.gguf", Q8),
        ("hf:owner/name:mmproj-F16.gguf", b"eyes"),
    ],
)
def test_a_quantisation_file_or_revision_is_chosen(
    server: HubServer, tmp_path: Path, text: str, data: bytes
) -> None:
    assert get(text, hub_of(server, tmp_path)).read_bytes() == data


def test_all_parts_come_and_their_progress_is_one(server: HubServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    source = parse_source("hf:owner/name:BF16")
    hub = hub_of(server, tmp_path)
    path = fetch(source, hub=hub, on_progress=lambda *progress: seen.append(progress))
    second = path.with_name("model-BF16-00002-of-00002.gguf")
    assert (path.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert seen == [(0, 6), (3, 6), (3, 6), (6, 6)]


def test_an_interrupted_download_goes_on(server: HubServer, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done == 500_000:
            raise Stop

    hub = hub_of(server, tmp_path)
    server.cut = [500_000]
    with pytest.raises(Stop):
        fetch(parse_source("hf:owner/name"), hub=hub, on_progress=stop)
    assert get("hf:owner/name", hub).read_bytes() == Q4
    assert server.transfers()[-1]["range"] == "bytes=500000-"


def test_a_file_with_another_checksum_is_refused(server: HubServer, tmp_path: Path) -> None:
    server.spoil = lambda data: data[:-1] + b"!"
    assert "its checksum is" in refusal("hf:owner/name", hub_of(server, tmp_path))
    assert not list((tmp_path / "hub").rglob("*.incomplete"))


def test_a_small_file_is_checked_as_git_would(server: HubServer, tmp_path: Path) -> None:
    small = frozenset(["tiny.gguf"])
    server.repositories["owner/small"] = Repository({"tiny.gguf": b"tiny"}, small=small)
    hub = hub_of(server, tmp_path)
    assert get("hf:owner/small", hub).read_bytes() == b"tiny"


def test_a_token_is_sent_to_the_hub_and_to_no_other_host(server: HubServer, tmp_path: Path) -> None:
    server.repositories["owner/name"].token = "hf_secret"
    assert "no such repository, or it is private" in refusal(
        "hf:owner/name", hub_of(server, tmp_path)
    )
    assert get("hf:owner/name", hub_of(server, tmp_path, "hf_secret")).read_bytes() == Q4
    asked = [h.get("authorization") for _, path, h in server.requests if "/resolve/" in path]
    assert asked and set(asked) == {"Bearer hf_secret"}
    assert [h.get("authorization") for h in server.transfers()] == [None]


def test_a_gated_model_says_where_to_ask(server: HubServer, tmp_path: Path) -> None:
    server.repositories["owner/name"].token = "hf_secret"
    server.repositories["owner/name"].gated = True
    reason = refusal("hf:owner/name", hub_of(server, tmp_path))
    assert "gated" in reason and "huggingface.co/owner/name" in reason and "HF_TOKEN" in reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hf:owner/nothing", "there is no such repository"),
        ("hf:owner/name@v9", "it has no revision v9"),
        ("hf:owner/name:Q3_K_S", "it has no Q3_K_S; there are"),
        ("hf:owner/name:other.gguf", "it has no file other.gguf"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(
    server: HubServer, tmp_path: Path, text: str, reason: str
) -> None:
    assert reason in refusal(text, hub_of(server, tmp_path))


def test_offline_takes_the_cache_and_asks_nobody(server: HubServer, tmp_path: Path) -> None:
    hub = hub_of(server, tmp_path)
    path = get("hf:owner/name", hub)
    n_requests = len(server.requests)
    offline = Hub(hub.endpoint, hub.cache, offline=True)
    assert get("hf:owner/name", offline) == path
    assert get("hf:owner/name:model-Q4_K_M.gguf", offline) == path
    assert "offline, it has no Q8_0; there are model-Q4_K_M" in refusal(
        "hf:owner/name:Q8_0", offline
    )
    assert "not in the cache" in refusal("hf:owner/other", offline)
    assert "not in the cache" in refusal("hf:owner/name@v2", offline)
    assert get(f"hf:owner/name@{COMMIT}", offline) == path
    assert "not in the cache" in refusal("hf:owner/name", Hub(cache=tmp_path / "x", offline=True))
    assert len(server.requests) == n_requests


def test_the_hubs_own_variables_hold(server: HubServer, tmp_path: Path) -> None:
    get("hf:owner/name", hub_of(server, tmp_path))
    n_requests = len(server.requests)
    code = (
        "import sys; from openai_local.models.fetch import fetch;"
        "from openai_local.models.sources import parse_source;"
        "sys.stdout.write(str(fetch(parse_source(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, "hf:owner/name"]
    variables = {"HF_HUB_CACHE": str(tmp_path / "hub"), "PATH": "", "PYTHONPATH": sys.path[0]}
    variables["PYTHONPATH"] = str(Path(__file__).parent.parent)
    run = subprocess.run(
        command, env=variables | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, text=True
    )
    assert Path(run.stdout).read_bytes() == Q4 and len(server.requests) == n_requests
    variables["HF_HUB_CACHE"] = str(tmp_path / "another")
    run = subprocess.run(
        command, env=variables | {"HF_ENDPOINT": server.url}, stdout=subprocess.PIPE, text=True
    )
    assert Path(run.stdout).read_bytes() == Q4 and "another" in run.stdout


def test_a_gated_model_comes_by_the_variables_of_the_hub(server: HubServer, tmp_path: Path) -> None:
    server.repositories["owner/name"].token = "hf_secret"
    server.repositories["owner/name"].gated = True
    code = (
        "import sys; from openai_local.models.fetch import fetch;"
        "from openai_local.models.sources import parse_source;"
        "sys.stdout.write(str(fetch(parse_source('hf:owner/name'))))"
    )
    variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"}
    variables |= {"PATH": "", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)
    assert Path(run.stdout).read_bytes() == Q4
    assert Path(run.stdout).is_relative_to(tmp_path / "hub")


def test_a_hub_that_does_not_answer_leaves_the_cache(server: HubServer, tmp_path: Path) -> None:
    path = get("hf:owner/name", hub_of(server, tmp_path))
    gone = Hub("http://127.0.0.1:9", tmp_path / "hub")
    assert get("hf:owner/name", gone) == path
    reason = refusal("hf:owner/name:Q8_0", gone)
    assert "the hub cannot be reached" in reason and "it has no Q8_0" in reason


def test_several_processes_download_once(server: HubServer, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from openai_local.models.fetch import fetch;"
        "from openai_local.models.hub import Hub;"
        "from openai_local.models.sources import parse_source;"
        "hub = Hub(sys.argv[1], Path(sys.argv[2]));"
        "sys.stdout.write(str(fetch(parse_source('hf:owner/name'), hub=hub)))"
    )
    command = [sys.executable, "-c", code, server.url, str(tmp_path / "hub")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0] for process in both}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == Q4
    assert len(server.transfers()) == 1


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install openai-local[hub]" in refusal("hf:owner/name", Hub(cache=tmp_path))
