"""The width controller on simulated machines: it finds what pays, gives up what does not, and comes back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftree.plugins.speculative.cost import StepCost
from thriftree.plugins.speculative.tree import ROOT, DraftTree
from thriftree.plugins.speculative.width import WidthConfig, WidthController

Machine = Callable[[int], float]
VALUES = (0.5, 0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02)
PROBED = (1, 2, 3, 5, 9, 17, 33, 65)


def flat(rows: int) -> float:
    """Bound by memory: rows are nearly free."""
    return 0.03 + 0.00005 * rows


def steep(rows: int) -> float:
    """Bound by compute: every row costs as much as a token."""
    return 0.003 + 0.008 * rows


def dented(rows: int) -> float:
    """A CPU's matrix products: five rows cost less than one, ten cost twice as much."""
    return {1: 0.047, 2: 0.043, 3: 0.041, 4: 0.040, 5: 0.039}.get(rows, 0.039 + 0.008 * (rows - 5))


@dataclass
class Run:
    gain: float  # tokens per second over those without speculation
    nodes: float  # per step
    all: list[int]  # of each step

    @property
    def last(self) -> list[int]:
        return self.all[-50:]


def drive(
    width: WidthController,
    machine: Machine,
    batch: int,
    steps: int = 600,
    *,
    honest: float = 1.0,
    noise: float = 0.02,
) -> Run:
    rng = random.Random(1)
    drafting = 0.0002
    seconds = tokens = 0.0
    nodes = []
    for _ in range(steps):
        cap = width.plan(batch)
        kept = [0] * batch
        trees: list[DraftTree] = []
        if cap:
            for _ in range(batch):
                values = sorted((v * rng.uniform(0.3, 1) for v in VALUES), reverse=True)[:cap]
                trees.append(DraftTree(list(range(len(values))), [ROOT] * len(values), values))
            width.learn_draft(batch, drafting * batch)
            seconds += drafting * batch
            kept = width.choose(trees)
        chosen = [v for tree, n in zip(trees, kept, strict=False) for v in tree.values[:n]]
        accepted = sum(rng.random() < v * honest for v in chosen)
        rows = batch + sum(kept)
        took = machine(rows) * rng.uniform(1 - noise, 1 + noise)
        width.learn_step(rows, took, sum(chosen), accepted)
        seconds += took
        tokens += batch + accepted
        nodes.append(sum(kept))
    return Run(tokens / seconds / (batch / machine(batch)), sum(nodes) / steps, nodes)


def probed(machine: Machine) -> WidthController:
    width = WidthController()
    width.cost.seed({rows: machine(rows) for rows in PROBED})
    return width


def test_wide_where_rows_are_free() -> None:
    run = drive(probed(flat), flat, 1)
    assert run.gain > 1.9
    assert run.nodes > 8


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("start", [probed, lambda machine: WidthController()], ids=["probed", "unprobed"])
def test_nothing_where_rows_cost_a_token_each(batch: int, start: Callable[[Machine], WidthController]) -> None:
    run = drive(start(steep), steep, batch, steps=1000)
    assert run.gain > 0.98, "never slower than off by more than two per cent"
    assert set(run.last) == {0}


def test_a_dent_in_the_cost_curve_is_used() -> None:
    run = drive(probed(dented), dented, 1)
    assert 3 < run.nodes < 4.5
    assert run.gain > 1.8


def test_a_dent_behind_a_hump_is_found() -> None:
    def hump(rows: int) -> float:
        return {1: 0.02, 2: 0.04, 3: 0.04, 4: 0.04}.get(rows, 0.021 if rows <= 9 else 0.021 * rows)

    width = WidthController()
    width.cost.seed({rows: hump(rows) for rows in range(1, 20)})
    run = drive(width, hump, 1)
    assert run.gain > 1.7


def test_it_gives_way_to_load_and_comes_back() -> None:
    def machine(rows: int) -> float:
        return 0.03 + 0.0002 * rows if rows <= 12 else 0.03 + 0.01 * (rows - 12)

    width = probed(machine)
    assert drive(width, machine, 1).nodes > 5
    crowd = drive(width, machine, 16)
    assert crowd.gain > 0.98
    assert crowd.nodes < 0.5
    assert drive(width, machine, 1).nodes > 5


def test_a_machine_that_became_wide_is_noticed_while_off() -> None:
    width = probed(steep)
    assert set(drive(width, steep, 2).last) == {0}
    drive(width, flat, 2, steps=1500)
    assert drive(width, flat, 2, steps=200).gain > 1.4


def test_what_does_not_pay_is_looked_at_now_and_then() -> None:
    width = probed(steep)
    drive(width, steep, 1, steps=100)
    looks = [n for n in drive(width, steep, 1, steps=1000).all if n]
    assert 2 <= len(looks) <= 12
    assert max(looks) <= 3, "with little"


def test_a_slower_clock_changes_nothing() -> None:
    width = probed(dented)
    before = drive(width, dented, 1)
    after = drive(width, lambda rows: 3 * dented(rows), 1)
    assert after.nodes == pytest.approx(before.nodes, abs=1.0)


def test_promises_are_corrected_by_what_came_true() -> None:
    def sloped(rows: int) -> float:
        return 0.03 + 0.004 * rows

    honest, boastful = probed(sloped), probed(sloped)
    assert drive(honest, sloped, 2).nodes > 2
    assert honest.ratio == pytest.approx(1.0, abs=0.2)
    run = drive(boastful, sloped, 2, honest=0.2)
    assert run.nodes < 0.5
    assert run.gain > 0.97
    assert boastful.ratio < 0.7


def test_noise_does_not_make_it_flap() -> None:
    def even(rows: int) -> float:
        """Exactly what the first node is worth: nothing to gain or lose."""
        return 0.03 * (1 + 0.36 * (rows - 1))

    run = drive(probed(even), even, 1, steps=1000, noise=0.1)
    assert run.gain > 0.97


def test_the_budget_goes_to_the_request_that_uses_it_best() -> None:
    def machine(rows: int) -> float:
        return 0.01 if rows <= 6 else 1.0

    width = WidthController(WidthConfig(max_nodes=8))
    width.cost.seed({rows: machine(rows) for rows in range(1, 20)})
    sure = DraftTree([1, 2, 3], [ROOT, 0, 1], [0.9, 0.8, 0.7])
    doubtful = DraftTree([1, 2, 3], [ROOT, 0, 1], [0.75, 0.2, 0.1])
    assert width.choose([sure, doubtful]) == [3, 1]
    assert width.choose([sure, DraftTree(), doubtful]) == [2, 0, 1]


def test_prefill_rows_count_as_rows_and_not_as_tokens() -> None:
    width = probed(steep)
    tree = DraftTree([1], [ROOT], [0.6])
    assert width.choose([tree]) == [0]
    assert width.choose([tree], rows=200) == [1], "a step that is long anyway"
    assert width.choose([tree], rows=200, tokens=200) == [0], "200 others would wait for it"


@settings(max_examples=100, deadline=None)
@given(
    costs=st.lists(st.floats(0.001, 1.0), min_size=30, max_size=30),
    values=st.lists(st.lists(st.floats(0.01, 0.99), max_size=9), min_size=1, max_size=3),
)
def test_no_choice_promises_less_than_none(costs: list[float], values: list[list[float]]) -> None:
    width = WidthController()
    width.cost.seed(dict(enumerate(costs, 1)))
    trees = [DraftTree(list(range(len(v))), [ROOT] * len(v), sorted(v, reverse=True)) for v in values]
    kept = width.choose(trees)
    assert all(0 <= n <= len(tree) for n, tree in zip(kept, trees, strict=True))
    drafting = width.draft_seconds * len(trees)

    def rate(sizes: list[int]) -> float:
        promised = sum(sum(tree.values[:n]) for n, tree in zip(sizes, trees, strict=True))
        return (len(trees) + promised) / (width.cost.seconds(len(trees) + sum(sizes)) + drafting)

    assert rate(kept) >= rate([0] * len(trees)) * (1 - 1e-9)
    merged = sorted((-v, t, n) for t, tree in enumerate(trees) for n, v in enumerate(tree.values))
    for best in range(len(merged) + 1):
        sizes = [sum(t == tree for _, t, _ in merged[:best]) for tree in range(len(trees))]
        assert rate(kept) * 1.0101 >= rate(sizes)


def test_nobody_to_draft_for() -> None:
    width = WidthController()
    assert width.plan(0) == 0
    assert width.choose([]) == []


def test_costs_between_and_beyond_what_was_measured() -> None:
    cost = StepCost()
    cost.seed({1: 1.0, 5: 0.8, 9: 1.6})
    assert cost.seconds(3) == pytest.approx(0.9)
    assert cost.seconds(13) == pytest.approx(2.4)
    assert cost.seconds(0) == 1.0
    for _ in range(60):
        cost.measure(1, 2.0)
    assert cost.seconds(9) > 2.3, "the machine has become slower, for other row counts too"
    assert cost.seconds(1) == pytest.approx(2.0, rel=0.02)
    cost = StepCost()
    cost.seed({1: 1.0, 5: 0.8})
    assert cost.seconds(20) == pytest.approx(0.8), "beyond what was measured nothing gets cheaper"
    cost = StepCost()
    for _ in range(50):
        cost.measure(4, 2.0)
    assert cost.seconds(4) == pytest.approx(2.0, rel=0.01)
    assert cost.age(4) == 0
    cost.measure(4, 200.0)
    assert cost.seconds(4) < 2.7, "a hiccup"
    assert cost.table().keys() == {4}
