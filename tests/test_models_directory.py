"""A directory of GGUF files as models."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from assets.edit import Fields, Tensors, Type, edited
from assets.tiny import llama
from clients import client_of
from fakes import FakeBackend

import openai_local
from openai_local.application import Application
from openai_local.config import load_settings
from openai_local.engine import Engine
from openai_local.models.directory import Directory
from openai_local.models.files import NoModel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    llama(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    for name in ("b.gguf", "sub/Deep.Q8_0.gguf", "mmproj-b.gguf", ".hidden.gguf", ".git/c.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no model")
    return tmp_path


def in_two_parts(fields: Fields, tensors: Tensors) -> None:
    for key, value in (("split.no", 0), ("split.count", 2), ("split.tensors.count", len(tensors))):
        fields[key] = (value, Type.INT32, None)


def app(folder: Path, **options: object) -> Application:
    return Application(
        load_settings(models_dir=folder, **options),
        lambda config: Engine(config, open_backend=lambda config, stopping: FakeBackend()),
    )


def test_sound_files_are_models_by_their_names(folder: Path) -> None:
    found = Directory(folder).scan()
    assert found == {"b": folder / "b.gguf", "sub/deep.q8_0": folder / "sub/Deep.Q8_0.gguf"}


def test_a_broken_file_is_left_out_and_told_once(
    folder: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = folder / "broken.gguf"
    broken.write_bytes(tiny.read_bytes()[:1000])
    edited(tiny, folder / "cut-00001-of-00002.gguf", in_two_parts)
    (folder / "B.gguf").write_bytes(tiny.read_bytes())
    directory = Directory(folder)
    for _ in range(2):
        assert set(directory.scan()) == {"b", "sub/deep.q8_0"}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(set(told)) == 3
    assert any(f"{broken} is left out" in text for text in told)
    shutil.copy(tiny, broken)
    assert "broken" in directory.scan()


def test_a_split_model_is_looked_at_again_when_any_of_its_parts_comes_or_goes(
    folder: Path, tiny: Path
) -> None:
    def part(number: int) -> Callable[[Fields, Tensors], None]:
        def change(fields: Fields, tensors: Tensors) -> None:
            n_all, half = len(tensors), len(tensors) // 2
            for name in sorted(tensors)[half:] if number == 0 else sorted(tensors)[:half]:
                del tensors[name]
            if number:
                fields.clear()
            values = {"split.no": number, "split.count": 2, "split.tensors.count": n_all}
            fields.update({key: (value, Type.UINT16, None) for key, value in values.items()})

        return change

    directory = Directory(folder)
    first = edited(tiny, folder / "big-00001-of-00002.gguf", part(0))
    assert "big" not in directory.scan()
    second = edited(tiny, folder / "big-00002-of-00002.gguf", part(1))
    assert directory.scan()["big"] == first
    second.unlink()
    assert "big" not in directory.scan()


def test_links_are_followed_and_lead_nowhere_twice(
    folder: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(tiny, elsewhere / "far.gguf")
    (folder / "linked.gguf").symlink_to(elsewhere / "far.gguf")
    (folder / "gone.gguf").symlink_to(elsewhere / "gone.gguf")
    (folder / "there").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(elsewhere)
    (folder / "up").symlink_to(folder)
    assert set(Directory(folder).scan()) == {"b", "sub/deep.q8_0", "linked", "there/far"}


@pytest.mark.anyio
async def test_a_name_that_is_no_text_is_left_out_and_others_are_served(
    folder: Path, tiny: Path
) -> None:
    odd = os.fsencode(folder) + b"/\xfe"
    os.mkdir(odd)
    for place in (os.fsencode(folder) + b"/\xff.gguf", odd + b"/c.gguf"):
        shutil.copy(tiny, place)
    for name in ("Ünï: cøde 模型.gguf", "a:b.gguf", "sub/x y.gguf"):
        shutil.copy(tiny, folder / name)
    local = app(folder)
    async with client_of(local, "/v1") as client:
        ids = [model["id"] for model in (await client.get("/models")).json()["data"]]
        assert ids == ["a:b", "b", "sub/deep.q8_0", "sub/x y", "ünï: cøde 模型"]
        for id in ids:
            body = {"model": id, "prompt": "x", "max_tokens": 1}
            assert (await client.post("/completions", json=body)).json()["model"] == id
            assert (await client.get(f"/models/{quote(id)}")).json()["id"] == id
    await local.aclose()


def test_a_directory_that_has_gone_has_no_models(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Directory(folder)
    shutil.rmtree(folder)
    assert directory.scan() == directory.scan() == {}
    assert len(caplog.records) == 1


@pytest.mark.anyio
async def test_what_is_put_into_the_directory_is_served_and_what_is_taken_out_is_not(
    folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai_local.models.catalog.RESCAN_S", 0)
    local = app(folder)
    body = {"prompt": "x", "max_tokens": 1}
    async with client_of(local, "/v1") as client:

        async def ids() -> list[str]:
            return [model["id"] for model in (await client.get("/models")).json()["data"]]

        async def served(id: str) -> bool:
            answer = await client.post("/completions", json={**body, "model": id})
            assert answer.status_code in (200, 404)
            return answer.status_code == 200

        assert await served("sub/deep.q8_0")
        assert await ids() == ["b", "sub/deep.q8_0"]
        shutil.copy(tiny, folder / "new.gguf")
        assert await served("new")
        assert (await client.get("/models/new")).json()["status"]["value"] == "loaded"
        assert await served("b")
        (folder / "b.gguf").unlink()
        assert await ids() == ["new", "sub/deep.q8_0"]
        with anyio.fail_after(10):  # nobody could use it any more
            while local.registry.state("b").value != "unloaded":
                await anyio.sleep(0.005)
        assert not await served("b")
        assert (await client.get("/models/b")).status_code == 404
        shutil.copy(tiny, folder / "B.GGUF")  # the same name, another file
        assert await served("b")
        assert (await local.registry.get("b")).engine.config.model.name == "B.GGUF"
    await local.aclose()


@pytest.mark.anyio
async def test_the_first_request_looks_into_the_directory_away_from_the_loop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def scan(directory: Directory) -> dict[str, Path]:
        threads.append(threading.current_thread().name)
        return {"b": directory.path / "b.gguf"}

    monkeypatch.setattr(Directory, "scan", scan)
    local = app(folder)
    async with client_of(local, "/v1") as client:
        answer = await client.post("/tokenize", json={"content": "x"})
    await local.aclose()
    assert answer.status_code == 200
    assert len(threads) == 1
    assert threads[0] != threading.main_thread().name


@pytest.mark.anyio
async def test_the_settings_models_come_first_and_a_file_is_one_model(
    folder: Path, tiny: Path
) -> None:
    shutil.copy(tiny, folder / "other.gguf")
    models = {
        "mine": {"path": folder / "sub/Deep.Q8_0.gguf", "alias": "other"},
        "far": {"path": "/elsewhere/far.gguf", "use": "embedding"},
    }
    local = app(folder, models=models)
    async with client_of(local, "/v1") as client:
        listed = (await client.get("/models")).json()["data"]
        other = (await client.get("/models/other")).json()
    await local.aclose()
    assert [model["id"] for model in listed] == ["mine", "far", "b"]
    assert other["id"] == "mine"
    assert (local.registry.default_id, local.registry.embedding_id) == ("mine", "far")


def test_the_default_is_the_first_file_or_the_one_that_is_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert app(folder).registry.default_id == "b"
    assert app(folder, default_model="sub/deep.q8_0").registry.default_id == "sub/deep.q8_0"
    with pytest.raises(openai_local.models.errors.UnknownModel, match="'c'.* b, sub/deep"):
        _ = app(folder, default_model="c").registry.default_id
    with pytest.raises(NoModel, match="there is no GGUF file in"):
        _ = app(tmp_path_factory.mktemp("empty")).registry.default_id
