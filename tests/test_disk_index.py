"""What is found equals what a search through everything finds."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from openai_local.engine.cache.disk_index import DiskEntry, DiskIndex
from openai_local.engine.cache.prefix import common_prefix
from openai_local.engine.cache.state_file import pack

SALTS = (b"a", b"b")
# Bytes of one token sort otherwise than the numbers: 256 is before 1.
tokens = st.lists(st.sampled_from([1, 2, 256, 257]), min_size=1, max_size=6).map(tuple)
held = st.dictionaries(st.tuples(tokens, st.sampled_from(SALTS)), st.integers(1, 9), max_size=25)


def entry(key: tuple[tuple[int, ...], bytes], n_bytes: int) -> DiskEntry:
    return DiskEntry(Path("x"), key[1], pack(key[0]), n_bytes)


def index_of(held: dict[tuple[tuple[int, ...], bytes], int]) -> DiskIndex:
    index = DiskIndex()
    for key, n_bytes in held.items():
        index.add(entry(key, n_bytes))
    return index


@settings(max_examples=300, deadline=None)
@given(held, tokens, st.sampled_from(SALTS), st.booleans())
def test_a_match_is_the_longest_there_is(
    held: dict[tuple[tuple[int, ...], bytes], int],
    wanted: tuple[int, ...],
    salt: bytes,
    whole: bool,
) -> None:
    index = index_of(held)
    found, n = index.match(pack(wanted), salt, whole=whole)
    shared = {key: common_prefix(key[0], wanted, len(wanted)) for key in held if key[1] == salt}
    usable = [n for key, n in shared.items() if not whole or n == len(key[0])]
    assert n == max(usable, default=0)
    assert (found is None) == (n == 0)
    if found is not None:
        assert found.salt == salt
        assert found.tokens[: 4 * n] == pack(wanted)[: 4 * n]
        assert not whole or found.n_tokens == n


@settings(max_examples=200, deadline=None)
@given(held, tokens, st.sampled_from(SALTS))
def test_the_others_that_begin_alike_are_found(
    held: dict[tuple[tuple[int, ...], bytes], int], wanted: tuple[int, ...], salt: bytes
) -> None:
    index = index_of(held)
    here = [key[0] for key in held if key[1] == salt]
    found = index.find(pack(wanted), salt)
    assert (None if found is None else found.tokens) == (pack(wanted) if wanted in here else None)
    covering = index.covering(pack(wanted), salt)
    longer = [key for key in here if key[: len(wanted)] == wanted]
    assert (covering is None) == (not longer)
    if covering is not None:
        assert covering.tokens.startswith(pack(wanted))
        assert covering.n_tokens == min(map(len, longer)) or wanted not in here
    prefixes = [found.tokens for found in index.prefixes(pack(wanted), salt)]
    shorter = [key for key in here if len(key) < len(wanted) and wanted[: len(key)] == key]
    assert prefixes == [pack(key) for key in sorted(shorter, key=len, reverse=True)]


@given(held, held)
def test_what_was_removed_is_found_no_more(
    held: dict[tuple[tuple[int, ...], bytes], int],
    gone: dict[tuple[tuple[int, ...], bytes], int],
) -> None:
    index = index_of(held)
    for key, n_bytes in gone.items():
        index.remove(entry(key, n_bytes))
    left = {k for k in held if held[k] != gone.get(k)}
    assert len(index) == len(left)
    for key in held:
        assert (index.find(pack(key[0]), key[1]) is not None) == (key in left)


def test_of_those_that_share_as_much_a_small_one_is_read() -> None:
    index = index_of({((1, 2, 3, 4), b"a"): 90, ((1, 2), b"a"): 20, ((1, 2, 3, 9), b"a"): 80})
    assert index.match(pack([1, 2, 7]), b"a", whole=False)[0] == entry(((1, 2), b"a"), 20)
