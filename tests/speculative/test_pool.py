"""The registry's descriptions, the pool's sharing of memory, and calibration."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from toy import RandomTarget, greedy, serve

from thriftree.plugins.speculative import registry
from thriftree.plugins.speculative.calibration import CELLS, Calibration, share_class, shipped
from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.pool import DrafterPool
from thriftree.plugins.speculative.tree import DraftTree


@pytest.mark.parametrize("name", registry.names())
def test_a_method_describes_itself(name: str) -> None:
    method = registry.describe(name)
    assert method.family == "speculation" and method.exact
    assert method.summary.endswith(".")
    assert method.paper[:4].isdigit()
    config = registry.configure(name)
    for option, schema in method.parameters["properties"].items():
        assert schema["default"] == getattr(config, option)
        assert schema["description"]
        assert registry.configure(name, {option: schema["default"]}) == config


def test_one_default() -> None:
    assert [name for name in registry.names() if registry.describe(name).default] == ["auto"]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("medusa", {}, "^method: unknown method 'medusa', expected one of auto, "),
        ("auto", {"depth": 1}, "^depth: auto has no such parameter"),
        ("auto", {"tries": 0}, "^tries: must be between 1 and 1024"),
        ("auto", {"floor": float("nan")}, "^floor: must be between"),
        ("auto", {"tries": 2.5}, "^tries: expected integer, got float"),
        ("auto", {"tries": True}, "^tries: expected integer, got bool"),
        ("auto", {"library": 1}, "^library: expected boolean, got int"),
        ("token_recycling", {"update": "some"}, "^update: expected one of all, accepted"),
        ("token_recycling", {"shape": "9"}, "^shape: "),
        ("token_recycling", {"shape": None}, "^shape: expected string, got NoneType"),
    ],
)
def test_bad_options_are_named(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.configure(method, options)
    pool = DrafterPool()
    with pytest.raises(ValueError, match=message):
        pool.start("r", "t", [1], method, options)
    assert len(pool) == 0 and pool.memory.live_bytes == 0
    with pytest.raises(ValueError, match=message):
        DrafterPool(options={method: options})


def test_whole_numbers_are_numbers() -> None:
    assert registry.configure("auto", {"floor": 0}).floor == 0.0


class OneMethod:
    """A pool as one drafter, for `serve`."""

    def __init__(self, pool: DrafterPool, method: str) -> None:
        self._pool, self._method = pool, method

    def start(self, request: str, tenant: str, prompt: list[int]) -> None:
        self._pool.start(request, tenant, prompt, self._method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


def steps(pool: DrafterPool, method: str, request: str) -> int:
    trees: list[DraftTree] = []
    target = RandomTarget(vocabulary=60, order=1, seed=3)
    serve(OneMethod(pool, method), target, [1, 2, 3], 40, greedy, request=request, trees=trees)  # type: ignore[arg-type]
    return len(trees)


def test_auto_starts_warm_after_token_recycling() -> None:
    cold = steps(DrafterPool(), "auto", "a")
    pool = DrafterPool()
    steps(pool, "token_recycling", "a")
    assert steps(pool, "auto", "b") < cold


def test_methods_of_a_tenant_store_nothing_twice() -> None:
    pool = DrafterPool()
    steps(pool, "token_recycling", "a")
    entries = len(pool.memory.enter("t").rows.two)
    steps(pool, "token_recycling", "b")
    steps(pool, "auto", "c")
    assert len(pool.memory.enter("t").rows.two) < 1.5 * entries


def test_every_request_has_its_own_method() -> None:
    pool = DrafterPool(default="suffix", options={"auto": {"library": False}})
    for request, method in (("a", "token_recycling"), ("b", None), ("c", "trie_lookahead")):
        pool.start(request, "t", [1, 2, 3, 1, 2], method)
        pool.emit(request, [3])
    assert [pool.method(r) for r in "abcd"] == ["token_recycling", "suffix", "trie_lookahead", None]
    assert [pool.wants_rows(r) for r in "abcd"] == [True, False, False, False]
    assert pool.wants_rows()
    assert pool.unseen("a", [(1, 2)]) == [0] and pool.unseen("b", [(1, 2)]) == []
    assert all(len(pool.propose(r, 4, 4)) for r in "bc")
    assert "a" in pool and len(pool) == 3
    pool.finish("a")
    assert not pool.wants_rows()
    pool.start("b", "t", [1], "auto")  # the name again: the old request is over
    assert len(pool) == 2
    for request in "bc":
        pool.finish(request)
    assert pool.memory.live_bytes == 0


def test_two_thousand_requests_with_aborts_leave_nothing_behind() -> None:
    budget = 600_000
    pool = DrafterPool(memory_bytes=budget)
    rng = random.Random(0)
    live: list[str] = []
    sizes = []
    for r in range(2000):
        name = str(r)
        prompt = [rng.randrange(300) for _ in range(rng.randrange(40))]
        pool.start(name, f"tenant {int(rng.expovariate(0.3))}", prompt, rng.choice(registry.names()))
        live.append(name)
        for request in rng.sample(live, min(3, len(live))):
            pairs = [(rng.randrange(300), rng.randrange(300)) for _ in range(3)]
            pool.observe(request, pairs, np.array([rng.sample(range(300), 8) for _ in pairs], dtype=np.int32))
            pool.emit(request, [rng.randrange(300) for _ in range(rng.randrange(1, 4))])
            pool.propose(request, rng.randrange(12), 8)
        while len(live) > 8 or (live and rng.random() < 0.3):
            pool.finish(live.pop(rng.randrange(len(live))))  # whatever it was doing
        sizes.append(pool.state_bytes())
    assert max(sizes) <= 1.05 * budget
    assert max(sizes[1000:]) <= 1.05 * max(sizes[:1000])
    for request in live:
        pool.finish(request)
    assert len(pool) == 0
    assert pool.memory.live_bytes == 0
    assert all(memory.live == 0 for memory in pool.memory._tenants.values())
    assert not any(drafter.state_bytes() for drafter in pool._drafters.values())


def test_idle_tenants_are_forgotten_first() -> None:
    pool = DrafterPool(memory_bytes=300_000)
    pool.start("kept", "running", [1, 2, 3])
    pool.observe("kept", [(1, 2)], np.arange(8, dtype=np.int32)[None])
    for tenant in range(100):
        pool.start("x", str(tenant), list(range(100)), "suffix")
        pool.emit("x", list(range(100)))
        pool.finish("x")
    assert pool.state_bytes() <= 300_000
    assert len(pool.memory) < 30
    pool.start("again", "running", [1], "token_recycling")
    assert pool.unseen("again", [(1, 2)]) == [], "a running tenant keeps what it learned"


def test_the_reported_bytes_are_about_what_is_held() -> None:
    import tracemalloc

    rng = random.Random(0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    pool = DrafterPool()
    for r, method in enumerate(registry.names() * 3):
        pool.start(str(r), "t", [rng.randrange(50_000) for _ in range(1000)], method)
        for _ in range(50):
            pairs = [(rng.randrange(50_000), rng.randrange(50_000)) for _ in range(8)]
            pool.observe(str(r), pairs, np.array(pairs * 4, dtype=np.int32).reshape(8, 8))
            pool.emit(str(r), [rng.randrange(50_000) for _ in range(3)])
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.6 < pool.state_bytes() / held < 1.7


def test_the_shipped_cells_are_probabilities_that_make_sense() -> None:
    cells = shipped()
    assert len(cells) == CELLS
    assert all(0 < p <= 1 for p in cells)
    assert cells[2] > 3 * cells[4], "rank 0 of a pair's row against rank 2"


def test_a_cell_follows_what_it_sees() -> None:
    calibration = Calibration(strength=10.0)
    rng = random.Random(0)
    for _ in range(2000):
        calibration.learn(7, rng.random() < 0.8)
    assert calibration.probability[7] == pytest.approx(0.8, abs=0.05)
    assert calibration.probability[8] == shipped()[8]
    assert Calibration().probability[7] == shipped()[7], "each tenant for itself"


def test_share_classes() -> None:
    assert [share_class(n, n, True) for n in (1, 2, 3, 9)] == [0, 1, 2, 2]
    assert [share_class(n, 10, latest) for n in (1, 4, 8) for latest in (False, True)] == [3, 4, 5, 6, 7, 8]


def test_the_drafter_learns_which_source_is_right_here() -> None:
    """Rows always wrong, suffixes always right: after a while the suffix's candidate comes first."""
    memory = Memory()
    drafter = registry.build("auto", memory)
    cycle = [1, 2, 3, 4, 5]
    drafter.start("r", "t", cycle * 2)
    for step in range(400):
        last = cycle[(step - 1) % 5]
        drafter.observe("r", [(cycle[(step - 2) % 5], last)], np.array([[9, 8, 7, 6, 10, 11, 12, 13]], dtype=np.int32))
        drafter.emit("r", [cycle[step % 5]])
        tree = drafter.propose("r", 4, 4)
    assert tree.tokens[0] == cycle[(step + 1) % 5]
    assert tree.values[0] > 0.97
