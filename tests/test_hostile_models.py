"""Whatever a model file says, the host's process lives: each is loaded in a process of its own."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assets import tiny
from assets.edit import Type, read, write

from openai_local.engine.errors import InvalidGguf
from openai_local.engine.gguf.check import read_checked

ROOT = Path(__file__).parent
N_ACCEPTED = 5  # files that llama.cpp gets, of each model and kind of change
N_TRIED = 400
NUMBERS = (0, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)
FRACTIONS = (0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-38)
WORDS = ("", "x", "none", "yarn", "longrope", "bert", "gpt2", "t5", "rwkv", "plamo2", "llama")


def outcomes(paths: list[Path]) -> list[str]:
    command = [sys.executable, "-m", "assets.load_all", *map(str, paths)]
    places = os.pathsep.join((str(ROOT), str(ROOT.parent)))
    run = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": places, "GGML_NO_BACKTRACE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert len(lines) == len(paths)
    return lines


def another(rng: random.Random, value: Any, kind: Type, inner: Type | None) -> Any:
    """Some other value for a key, of the same type."""
    if kind is Type.ARRAY:
        one = another(rng, value[0], inner or Type.STRING, None) if value else None
        n = rng.choice((0, 1, len(value) // 2, len(value), len(value) + 1))
        same, longer = [one] * n, (value * 2)[:n]
        return rng.choice((same, longer, [*value[:-1], one])) if value else value
    if kind is Type.STRING:
        return rng.choice(WORDS)
    if kind is Type.BOOL:
        return not value
    if kind in (Type.FLOAT32, Type.FLOAT64):
        return rng.choice(FRACTIONS)
    return rng.choice((*NUMBERS, value + 1, max(value - 1, 0), value * 2, value // 2)) % 2**32


def changed_values(source: Path, rng: random.Random, target: Path) -> None:
    fields, tensors = read(source)
    for key in rng.sample(sorted(fields), rng.randint(1, 2)):
        value, kind, inner = fields[key]
        fields[key] = (another(rng, value, kind, inner), kind, inner)
    write(target, fields, tensors)


def changed_bytes(source: Path, rng: random.Random, target: Path) -> None:
    data = bytearray(source.read_bytes())
    end = read_checked(source)[0].tensors[0].offset
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(4, end)] = rng.randrange(256)
    target.write_bytes(data)


def changed_tensors(source: Path, rng: random.Random, target: Path) -> None:
    fields, tensors = read(source)
    name = rng.choice(sorted(tensors))
    data = tensors[name]
    kinds = (np.float16, np.int32, np.int8, np.int64, np.float64)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: data.astype(rng.choice(kinds)),
        lambda: data.T.copy(),
        lambda: data[:-1],
        lambda: data[..., :-1],
        lambda: data.reshape(1, *data.shape),
        lambda: data.reshape(*data.shape, 1),
        lambda: data.reshape(-1),
        lambda: np.stack([data, data]),
        lambda: data * np.float32("nan"),
        lambda: tensors[rng.choice(sorted(tensors))],
    )
    if rng.random() < 0.1:
        del tensors[name]
    else:
        tensors[name] = rng.choice(changes)()
    write(target, fields, tensors)


def accepted(
    source: Path, change: Callable[[Path, random.Random, Path], None], seed: int
) -> Iterator[Path]:
    rng = random.Random(seed)
    n = 0
    for i in range(N_TRIED):
        target = source.with_name(f"{i}.gguf")
        try:
            change(source, rng, target)
        except (ValueError, struct.error):
            continue  # the writer cannot write it
        try:
            read_checked(target)
        except InvalidGguf:
            target.unlink()
            continue
        yield target
        n += 1
        if n == N_ACCEPTED:
            return


@pytest.mark.model
@pytest.mark.parametrize(
    "change", [changed_values, changed_bytes, changed_tensors], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", sorted(tiny.TINY_MODELS))
def test_no_file_that_is_accepted_ends_the_process(
    tmp_path: Path, name: str, change: Callable[[Path, random.Random, Path], None]
) -> None:
    source = tmp_path / "source.gguf"
    tiny.TINY_MODELS[name](source)
    paths = list(accepted(source, change, seed=7))
    assert len(paths) == N_ACCEPTED
    found = outcomes([source, *paths])
    assert found[0] == "ok"
    assert [line for line in found if line.startswith("ended by")] == []
