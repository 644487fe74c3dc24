from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftree.server.remote.ring import FACTOR, Ring, capacity, least_loaded

NAMES = st.lists(st.text("abcdef0123456789:.", min_size=1, max_size=12), min_size=1, max_size=8, unique=True)
KEYS = [f"prompt {index}".encode() for index in range(2000)]


def owner(ring: Ring, key: bytes) -> str:
    return next(ring.order(key))


@given(NAMES, st.binary(max_size=64))
def test_order_names_everyone_once(names: list[str], key: bytes) -> None:
    assert sorted(Ring(names).order(key)) == sorted(names)


@given(NAMES, st.randoms())
def test_order_of_the_flags_does_not_matter(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Ring(names), Ring(shuffled)
    assert [owner(one, key) for key in KEYS[:50]] == [owner(other, key) for key in KEYS[:50]]


@given(NAMES)
def test_an_engine_that_leaves_moves_only_its_own_keys(names: list[str]) -> None:
    before, gone = Ring(names), names[0]
    after = Ring(names[1:])
    for key in KEYS[:100]:
        if owner(before, key) != gone:
            assert owner(after, key) == owner(before, key)
        elif names[1:]:
            assert owner(after, key) == list(before.order(key))[1]  # as the order said beforehand


@given(NAMES, st.text("xyz", min_size=1, max_size=5))
def test_an_engine_that_comes_takes_keys_and_moves_no_other(names: list[str], new: str) -> None:
    before, after = Ring(names), Ring([*names, new])
    assert all(owner(after, key) in (owner(before, key), new) for key in KEYS[:100])


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_shares_are_fair(count: int) -> None:
    ring = Ring(f"http://engine-{index}:8000" for index in range(count))
    shares = Counter(owner(ring, key) for key in KEYS)
    assert len(shares) == count
    assert max(shares.values()) < 1.5 * len(KEYS) / count


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 50), min_size=1), st.binary(max_size=8))
def test_load_is_bounded(loads: dict[str, int], key: bytes) -> None:
    chosen = Ring(loads).choose(key, loads)
    assert loads[chosen] + 1 <= ceil(FACTOR * (sum(loads.values()) + 1) / len(loads)) == capacity(loads)
    earlier = [name for name in Ring(loads).order(key)]
    for name in earlier[: earlier.index(chosen)]:  # nobody in front of him was passed over without need
        assert loads[name] + 1 > capacity(loads)


@given(NAMES.filter(lambda names: len(names) > 1), st.binary(max_size=8))
def test_only_those_who_can(names: list[str], key: bytes) -> None:
    assert Ring(names).choose(key, {names[1]: 1000}) == names[1]


def test_nobody_can() -> None:
    with pytest.raises(KeyError):
        Ring(["a"]).choose(b"key", {})


def test_a_flood_of_one_prefix_spreads_within_the_bound() -> None:
    loads = dict.fromkeys(("a", "b", "c", "d"), 0)
    ring = Ring(loads)
    for _ in range(400):
        loads[ring.choose(b"the same", loads)] += 1
    assert max(loads.values()) <= ceil(FACTOR * 400 / 4) and min(loads.values()) > 0


def test_least_loaded_prefers_who_has_rested() -> None:
    assert least_loaded({"b": 1, "a": 0, "c": 0}) == "a"
