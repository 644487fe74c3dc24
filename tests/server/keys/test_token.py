"""The form of a key."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.keys import token


def test_keys_are_256_random_bits_and_carry_their_id() -> None:
    minted = [token.mint() for _ in range(2000)]
    assert len({key for key, _ in minted}) == 2000
    for key, identity in minted:
        assert token.id_of(key.encode()) == identity
        assert len(key) == len("tt-") + 12 + 1 + 43
        assert key.isascii() and not set(key) & set("/+=%& ")


@given(st.binary(max_size=80))
def test_other_bytes_have_no_id(text: bytes) -> None:
    assert token.id_of(text) is None


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + "\n", lambda key: key.upper()])
def test_nearly_a_key(change: object) -> None:
    assert callable(change)
    assert token.id_of(change(token.mint()[0]).encode()) is None


def test_what_a_keys_file_may_say() -> None:
    digest = hashlib.sha256(b"sk-1").digest()
    assert token.listed("sk-1") == token.listed(f"sha256:{digest.hex()}") == token.digest(b"sk-1") == digest


@pytest.mark.parametrize("text", ["", "sha256:12", "sha256:" + "G" * 64, "two words", "ké", "a\x00b", "k" * 513, "a\n"])
def test_what_it_may_not(text: str) -> None:
    with pytest.raises(ValueError):
        token.listed(text)
