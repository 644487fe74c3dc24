"""Token Recycling on targets where its result is known, and the shapes that it hangs rows on."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from toy import RandomTarget, greedy, rolling, serve

from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.registry import build
from thriftree.plugins.speculative.rows import Rows, RowTable
from thriftree.plugins.speculative.shape import MEASURED_RANKS, named_shape, shape_from_paths, tuned_shape
from thriftree.plugins.speculative.tree import ROOT, DraftTree


def test_the_paper_s_tree() -> None:
    shape = named_shape("2.2.2")
    assert len(shape) == 80
    assert Counter(shape.depths) == {1: 8, 2: 21, 3: 25, 4: 15, 5: 8, 6: 3}
    assert len(set(range(80)) - set(shape.parents)) == 40, "leaves"


@pytest.mark.parametrize("name", ["tuned", "2.2.2", "1 0 10"])
def test_shapes_are_trees_in_falling_order(name: str) -> None:
    shape = named_shape(name)
    assert all(ROOT <= parent < i for i, parent in enumerate(shape.parents))
    assert list(shape.values) == sorted(shape.values, reverse=True)
    assert len(set(zip(shape.parents, shape.ranks, strict=True))) == len(shape)
    for i, parent in enumerate(shape.parents):
        above = (1.0, 0) if parent == ROOT else (shape.values[parent], shape.depths[parent])
        assert shape.values[i] == pytest.approx(above[0] * MEASURED_RANKS[shape.ranks[i]])
        assert shape.depths[i] == above[1] + 1


def test_the_tuned_shape_is_the_best_of_its_size() -> None:
    ranks = (0.5, 0.3, 0.1)
    shape = tuned_shape(ranks, 6)
    paths = [""]
    for _ in range(6):  # all paths of up to six ranks, best first
        paths += [path + str(r) for path in paths for r in range(3)]
    values = sorted({p: np.prod([ranks[int(d)] for d in p]) for p in set(paths) - {""}}.values(), reverse=True)
    assert sum(shape.values) == pytest.approx(sum(values[:6]))
    assert max(tuned_shape(ranks, 50, max_depth=2).depths) == 2


@pytest.mark.parametrize("ranks", [(1.0,), (0.7, 0.4), (-0.1,)])
def test_what_is_no_rank_acceptance_is_refused(ranks: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rank_acceptance"):
        tuned_shape(ranks, 4)


def test_a_shape_without_a_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix"):
        shape_from_paths(["0", "11"])
    with pytest.raises(ValueError, match="twice"):
        shape_from_paths(["0", "0"])
    for name in ("", "binary", "0 9"):
        with pytest.raises(ValueError, match="shape"):
            named_shape(name)


@pytest.mark.parametrize("pairs", [False, True])
def test_seven_tokens_a_step_on_a_first_order_target_once_warm(pairs: bool) -> None:
    drafter = build("token_recycling", Memory(), {"shape": "2.2.2", "pairs": pairs})
    target = RandomTarget(vocabulary=30, order=1, seed=4)
    for r in range(2):  # the second finds every row in place
        serve(drafter, target, [3], 71, greedy, request=str(r), nodes=80)
    trees: list[DraftTree] = []
    serve(drafter, target, [3], 71, greedy, request="warm", nodes=80, trees=trees)
    assert len(trees) == 1 + 70 / 7  # the prefill's token, then depth 6 + bonus in every step


def test_more_is_learned_from_all_rows_than_from_accepted_ones() -> None:
    steps = {"all": 0, "accepted": 0}
    for update in steps:
        for seed in range(6):
            drafter = build("token_recycling", Memory(), {"update": update, "shape": "2.2.2"})
            trees: list[DraftTree] = []
            target = RandomTarget(vocabulary=40, order=1, seed=seed)
            serve(drafter, target, [3, 1], 60, rolling(seed), nodes=80, trees=trees)
            steps[update] += len(trees)
    assert steps["all"] < 0.9 * steps["accepted"]


def test_accepted_rows_only() -> None:
    memory = Memory()
    drafter = build("token_recycling", memory, {"update": "accepted"})
    drafter.start("r", "t", [1, 2])
    row = np.arange(8, dtype=np.int32)
    drafter.observe("r", [(1, 2)], row[None])  # the prompt's last row
    drafter.emit("r", [5])
    drafter.observe("r", [(2, 5), (5, 6), (5, 7)], np.stack([row, row + 1, row + 2]))
    drafter.emit("r", [7, 9])
    rows = memory.enter("t").rows
    assert (5, 6) not in [key for key in ((5, 6), (5, 7)) if rows.two.get(key[0] << 32 | key[1])]
    assert rows.two.get(5 << 32 | 7) == tuple(range(2, 10))
    assert rows.two.get(2 << 32 | 5) == tuple(range(8))
    assert not rows.one.get(6)


def test_unseen_tokens_have_no_children() -> None:
    drafter = build("token_recycling", Memory())
    drafter.start("r", "t", [1, 2])
    assert len(drafter.propose("r", 8, 8)) == 0
    drafter.observe("r", [(1, 2)], np.array([[4, 5, -1, -1, -1, -1, -1, -1]], dtype=np.int32))
    tree = drafter.propose("r", 8, 8)
    assert (list(tree.tokens), list(tree.parents)) == ([4, 5], [ROOT, ROOT])
    assert drafter.unseen("r", [(1, 2), (2, 4), (2, 4), (-1, 2), (-1, 3)]) == [1, 4]


@pytest.mark.parametrize(("pairs", "first"), [(True, 0), (False, 8)])
def test_rows_of_two_tokens_come_first_where_asked_for(pairs: bool, first: int) -> None:
    drafter = build("token_recycling", Memory(), {"pairs": pairs})
    drafter.start("r", "t", [1, 2])
    drafter.observe("r", [(1, 2), (3, 2)], np.arange(16, dtype=np.int32).reshape(2, 8))
    assert drafter.propose("r", 1, 1).tokens == [first]


def test_k_bounds_the_children() -> None:
    drafter = build("token_recycling", Memory(), {"k": 3})
    drafter.start("r", "t", [1, 2])
    drafter.observe("r", [(1, 2)], np.arange(10, 18, dtype=np.int32)[None])
    assert drafter.propose("r", 8, 1).tokens == [10, 11, 12]


def test_two_tokens_before_one() -> None:
    rows = Rows()
    first, second = np.arange(8, dtype=np.int32)[None], np.arange(8, 16, dtype=np.int32)[None]
    rows.write([(1, 2)], first)
    rows.write([(3, 2)], second)
    assert rows.two.get(1 << 32 | 2) == tuple(range(8))
    assert rows.one.get(2) == tuple(range(8, 16)), "the later one"


def test_where_a_key_comes_twice_the_row_worth_most_stays() -> None:
    batch = np.array([[1] * 8, [2] * 8], dtype=np.int32)
    rows = Rows()
    rows.write_verified([(7, 9), (8, 9)], batch)
    assert rows.one.get(9)[0] == 1, "the likelier node of a tree"
    rows.write_verified([(7, 9), (8, 9)], batch, prompt=True)
    assert rows.one.get(9)[0] == 2, "the last of a prompt"


def test_a_full_table_forgets_what_was_written_longest_ago() -> None:
    table = RowTable(limit=80)
    row = np.arange(8, dtype=np.int32).tobytes()
    for key in range(80):
        table.put(key, row)
    table.put(0, row)  # written again: young
    table.put(80, row)
    assert len(table) <= 80
    assert 0 in table and 80 in table and 1 not in table
    rng = random.Random(0)
    for _ in range(1000):
        table.put(rng.randrange(10_000), row)
        assert len(table) <= 80


def test_rows_of_another_width_are_read_as_they_were_written() -> None:
    table = RowTable(limit=8)
    table.put(1, np.arange(8, dtype=np.int32).tobytes())
    table.put(2, np.arange(4, dtype=np.int32).tobytes())
    assert table.get(1) == tuple(range(8))
    assert table.get(2) == tuple(range(4))
