"""What holds for every method: exact counts, who stays in any case, and that only the rows decide, not their places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_methods import METHODS, each_method
from kv_toy import HEADS, Toy

from thriftree.plugins.kv_cache import registry

counts = st.integers(1, 90)
seeds = st.integers(0, 2**31)
some = settings(max_examples=20)


def test_every_method_has_a_row() -> None:
    """Those that only read less drop nothing, and have no row."""
    dropping = {method for method in registry.names() if not registry.describe(method).reads}
    assert {method for method, _ in METHODS} == dropping


@each_method
@some
@given(counts, st.integers(0, 100), st.integers(0, 6), st.integers(0, 12), seeds)
def test_exactly_as_many_rows_and_the_protected_ones(
    method: str, options: dict[str, Any], tokens: int, keep: int, sinks: int, recent: int, seed: int
) -> None:
    keep = max(keep, sinks + recent)
    toy = Toy(registry.configure(method, options), tokens, seed, most=100)
    toy.grow(tokens)
    toy.compress(keep, sinks, recent)
    always = set(range(min(sinks, tokens))) | set(range(max(tokens - recent, 0), tokens))
    for positions in toy.kept():
        assert len(set(positions)) == len(positions) == min(keep, tokens)
        assert always <= set(positions)


@each_method
@some
@given(counts, st.integers(1, 90), seeds)
def test_the_places_of_rows_do_not_matter(
    method: str, options: dict[str, Any], tokens: int, keep: int, seed: int
) -> None:
    toy = Toy(registry.configure(method, options), tokens, seed, most=100)
    toy.grow(tokens)
    rows = toy.rows(keep)
    known = torch.empty(HEADS, tokens, dtype=torch.double).scatter_(1, toy.pos, toy.method.score(rows).double())
    first = toy.pos[toy.mask(keep, 2, 3)].view(HEADS, -1)
    toy.shuffle(seed)
    second = toy.pos[toy.mask(keep, 2, 3)].view(HEADS, -1)
    for head in range(HEADS):
        moved = sorted(set(first[head].tolist()) ^ set(second[head].tolist()))
        # A sum in another order may swap two rows whose scores are the same but for the last bits.
        spread = known[head, moved]
        assert not moved or spread.max() - spread.min() < 1e-5 * known[head].abs().clamp_max(1e9).max()


@each_method
def test_the_same_cache_gives_the_same_rows(method: str, options: dict[str, Any]) -> None:
    def run() -> list[list[int]]:
        toy = Toy(registry.configure(method, options), 60)
        toy.grow(60)
        toy.compress(30, 4, 8)
        return toy.kept()

    assert run() == run()


@each_method
@pytest.mark.parametrize("shuffled", [False, True])
def test_compressed_again_and_again(method: str, options: dict[str, Any], shuffled: bool) -> None:
    toy = Toy(registry.configure(method, options), 200)
    toy.grow(200)
    toy.compress(64, 4, 16)
    for again in range(20):
        before = toy.kept()
        toy.grow(32)
        if shuffled:
            toy.shuffle(again)
        toy.compress(64, 4, 16)
        for old, new in zip(before, toy.kept(), strict=True):
            assert len(set(new)) == 64
            assert {*range(4), *range(toy.length - 16, toy.length)} <= set(new)
            assert set(new) <= {*old, *range(toy.length - 32, toy.length)}


@each_method
@pytest.mark.parametrize("keep", [50, 51, 4096])
def test_room_for_all_keeps_all(method: str, options: dict[str, Any], keep: int) -> None:
    toy = Toy(registry.configure(method, options), 50)
    toy.grow(50)
    assert toy.mask(keep).all()


@each_method
def test_ties_and_equal_tokens(method: str, options: dict[str, Any]) -> None:
    """Where all tokens are alike, the count is still exact, and nothing depends on the places."""
    toy = Toy(registry.configure(method, options), 48)
    for part in (toy.keys, toy.values, toy.queries):
        part.fill_(0.5)
    toy.grow(48)
    toy.compress(20, 2, 5)
    first = toy.kept()
    again = Toy(toy.method, 48)
    again.keys, again.values, again.queries = toy.keys, toy.values, toy.queries
    again.grow(48)
    again.shuffle(3)
    again.compress(20, 2, 5)
    assert again.kept() == first
    assert [len(row) for row in first] == [20] * HEADS


@pytest.mark.parametrize(
    ("method", "options"), [row for row in METHODS if not registry.describe(row[0]).defer], ids=str
)
def test_a_method_that_need_not_wait_does_not_depend_on_when(method: str, options: dict[str, Any]) -> None:
    """`defer = False` says so: however the prompt is cut into chunks, the same rows are left."""
    configured = registry.configure(method, options)

    def run(chunk: int) -> list[list[int]]:
        toy = Toy(configured, 300)
        while toy.length < 480:
            toy.grow(min(chunk, 480 - toy.length))
            if toy.length > 64:
                toy.compress(64, 4, 16)
        return toy.kept()

    assert run(480) == run(96) == run(32) == run(7)


@each_method
def test_half_precision_caches_are_scored_in_float32(method: str, options: dict[str, Any]) -> None:
    toy = Toy(registry.configure(method, options), 60)
    toy.keys, toy.values, toy.queries = toy.keys.bfloat16(), toy.values.bfloat16(), toy.queries.bfloat16().float()
    toy.grow(60)
    toy.queries = toy.queries.bfloat16()
    assert toy.method.score(toy.rows(30)).dtype in (torch.float32, torch.float64)
