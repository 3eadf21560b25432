"""Refuses vocabularies with which llama.cpp asserts, throws or goes on for ever at some text.

The numbers are of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from openai_local.engine.gguf.charsmap import is_sound
from openai_local.engine.gguf.facts import Facts
from openai_local.engine.gguf.file import CHARSMAP, TOKEN_TYPES, TOKENS, Array

_NULL = -1

# Bos, eos, sep, where a file does not say; and whether bos and sep begin and end a text.
_SPECIAL: Mapping[str, tuple[int, int, int]] = {
    "llama": (1, 2, _NULL),
    "bert": (101, _NULL, 102),
    "gpt2": (11, 11, _NULL),
    "hybriddna": (11, 11, _NULL),
    "whitespace": (11, 11, _NULL),
    "t5": (_NULL, 1, _NULL),
    "gemma4": (_NULL, _NULL, _NULL),
}
_BYTE = 6
# Those that UTF-8 has: llama.cpp throws where it needs the token of one and there is none.
_TEXT_BYTES = sorted(set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)})


def check_vocabulary(facts: Facts) -> None:
    """Raises InvalidGguf where a text may end the process, or the load does."""
    kind = facts.text("tokenizer.ggml.model", "none")
    tokens = facts.metadata.get(TOKENS)
    if tokens is None:
        return
    if not isinstance(tokens, Array) or tokens.type != "string":
        raise facts.refuse("its vocabulary is no list of strings")
    # Cut at a NUL, as by C; an empty one gets a name of its own.
    words = [text.partition(b"\0")[0] for text in tokens.values]
    known = {word or b"[EMPTY_%d]" % i for i, word in enumerate(words)}
    facts.require(len(known) == tokens.n, "its vocabulary has a token twice")
    # It cuts words without marking their spaces, which merges then assert that there are none of.
    spaces = facts.text("tokenizer.ggml.pre", "") == "whitespace" and kind != "whitespace"
    facts.require(not spaces, f"its vocabulary of kind {kind[:40]!r} is cut at whitespace")
    _check_size(facts, tokens.n)
    _check_special(facts, kind, tokens.n)
    if kind in _RULES:
        _RULES[kind](facts, tokens, known)


def _check_unigram(facts: Facts, tokens: Array, known: Set[bytes]) -> None:
    charsmap = facts.metadata.get(CHARSMAP)
    if isinstance(charsmap, Array) and charsmap.type in ("uint8", "int8"):
        whole = len(charsmap.values) == charsmap.n
        sound = whole and is_sound(bytes(n & 0xFF for n in charsmap.values))
        facts.require(sound, "its precompiled_charsmap leads out of itself")


def _check_bert(facts: Facts, tokens: Array, known: Set[bytes]) -> None:
    types = facts.metadata.get(TOKEN_TYPES)
    if isinstance(types, Array):
        facts.require(_BYTE not in types.values, "its vocabulary has bytes, which BERT's cannot")


def _check_llama(facts: Facts, tokens: Array, known: Set[bytes]) -> None:
    missing = [b for b in _TEXT_BYTES if b"<0x%02X>" % b not in known]
    missing = [b for b in missing if b == 0 or bytes([b]) not in known]
    facts.require(not missing, f"its vocabulary has no token for {len(missing)} bytes of texts")


def _check_rwkv(facts: Facts, tokens: Array, known: Set[bytes]) -> None:
    words = [_unescaped(text) for text in tokens.values]
    begun = {word[:1] for word in words if word}
    # The search for what begins with such a byte does not come to an end.
    sound = begun <= {word for word in words if len(word) == 1}
    facts.require(sound, "its vocabulary has words whose first byte is no token")


def _unescaped(text: bytes) -> bytes:
    """A token's bytes, as llama.cpp reads RWKV's."""
    if b"\\" not in text:
        return text
    out, rest = bytearray(), iter(text)
    for byte in rest:
        if byte != ord("\\"):
            out.append(byte)
            continue
        byte = next(rest, -1)
        if byte == ord("x"):
            digits = [next(rest, -1), next(rest, -1)]
            if -1 not in digits:
                high, low = (d - 87 if 97 <= d < 128 else d - 48 for d in digits)
                out.append((16 * high + low) % 256)
        elif byte != -1:
            out.append({"t": 9, "n": 10, "r": 13}.get(chr(byte), byte))
    return bytes(out)


def _check_size(facts: Facts, n_tokens: int) -> None:
    embeddings = facts.tensors.get("token_embd.weight")
    if embeddings is not None and len(embeddings.shape) == 2:
        n_rows = embeddings.shape[1]
        facts.require(
            n_rows == n_tokens, f"it has {n_tokens} tokens, and embeddings for {n_rows} of them"
        )


def _check_special(facts: Facts, kind: str, n_tokens: int) -> None:
    """What is put before and after every text must be in the vocabulary."""
    if kind not in _SPECIAL:
        return
    ids = dict(zip(("bos", "eos", "seperator"), _SPECIAL[kind], strict=True))
    for name, default in ids.items():
        given = facts.number(f"tokenizer.ggml.{name}_token_id", default)
        ids[name] = given if 0 <= given < n_tokens else default
    adds = {"bos": kind != "t5", "eos": kind == "t5", "seperator": False}
    adds = {
        name: facts.flag(f"tokenizer.ggml.add_{name}_token", default)
        for name, default in adds.items()
    }
    if kind == "bert":
        adds = {"bos": True, "eos": False, "seperator": True}
    elif kind == "gemma4":
        adds["bos"] = True
    for name, added in adds.items():
        known = 0 <= ids[name] < n_tokens or not added or (name == "seperator" and kind != "bert")
        facts.require(known, f"texts get a {name} token, and its vocabulary has none")


_RULES: Mapping[str, Callable[[Facts, Array, Set[bytes]], None]] = {
    "llama": _check_llama,
    "bert": _check_bert,
    "t5": _check_unigram,
    "rwkv": _check_rwkv,
}
