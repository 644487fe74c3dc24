"""The laws of the queue, for any traffic."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from thriftree.server.admission.fair_queue import Entry, FairQueue, QueueFull

TENANTS = st.sampled_from("abcd")
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 4.0}
COSTS = st.integers(1, 1000)


def fill(queue: FairQueue, tenant: str, costs: list[int], weight: float = 1.0, priority: int = 0) -> list[Entry]:
    return [queue.push(tenant, weight, priority, cost)[0] for cost in costs]


def test_inside_a_tenant_by_priority_then_arrival() -> None:
    queue = FairQueue(10, 1000)
    pushed = [queue.push("a", 1, priority, 1)[0] for priority in (0, 5, -1, 0, -1)]
    assert [queue.pop() for _ in range(6)] == [pushed[index] for index in (2, 4, 0, 3, 1)] + [None]


def test_a_newcomer_is_next_beside_a_flood() -> None:
    queue = FairQueue(2000, 10**6)
    flood = fill(queue, "flood", [100] * 1000)
    assert queue.pop() is flood[0]
    light, _ = queue.push("light", 1, 0, 900)  # and however much it asks itself
    assert queue.pop() is light
    assert queue.pop() is flood[1]


def test_leaving_and_coming_back_is_no_way_to_the_front() -> None:
    """One that never has more than one request waiting, and a large one, as if it were new every time."""
    queue, got = FairQueue(100, 10**6), Counter[str]()
    fill(queue, "patient", [10] * 60)
    for _ in range(44):
        if not queue.holds("smart"):
            queue.push("smart", 1, 0, 100)
        entry = queue.pop()
        assert entry is not None
        got[entry.tenant] += entry.cost
    assert abs(got["smart"] - got["patient"]) <= 110


@given(st.lists(st.tuples(TENANTS, COSTS), min_size=1, max_size=60), st.data())
def test_work_conservation_and_no_starvation(arrivals: list[tuple[str, int]], data: Any) -> None:
    """As long as somebody waits, a pop serves somebody; everybody is served once, however pushes and pops mix."""
    queue, pushed, popped = FairQueue(100, 10**6), [], []
    for tenant, cost in arrivals:
        pushed.append(queue.push(tenant, WEIGHTS[tenant], data.draw(st.integers(-1, 1)), cost)[0])
        if data.draw(st.booleans()):
            popped.append(queue.pop())
    while queue:
        popped.append(queue.pop())
    assert Counter(map(id, popped)) == Counter(map(id, pushed)) and queue.pop() is None


@given(
    st.dictionaries(TENANTS, st.lists(COSTS, min_size=30, max_size=30), min_size=2),
    st.integers(2, 25),
    st.integers(0, 9),
)
def test_shares_are_proportional_within_one_request(load: dict[str, list[int]], turns: int, before: int) -> None:
    """Over any stretch in which all wait."""
    queue = FairQueue(1000, 10**9)
    for tenant, costs in load.items():
        fill(queue, tenant, costs, WEIGHTS[tenant])
    for _ in range(before):
        queue.pop()
    got: Counter[str] = Counter()
    for _ in range(turns):
        entry = queue.pop()
        assert entry is not None
        got[entry.tenant] += entry.cost
        if not all(queue.holds(tenant) for tenant in load):
            break
    most = {tenant: max(costs) / WEIGHTS[tenant] for tenant, costs in load.items()}
    for one in load:
        for other in load:
            assert abs(got[one] / WEIGHTS[one] - got[other] / WEIGHTS[other]) <= most[one] + most[other] + 1e-6


@given(st.lists(COSTS, min_size=1, max_size=50), st.integers(0, 49), COSTS)
def test_a_light_tenants_first_request_waits_for_nobody_who_waits(flood: list[int], served: int, cost: int) -> None:
    queue = FairQueue(100, 10**6)
    fill(queue, "flood", flood)
    for _ in range(served % len(flood)):
        queue.pop()
    light, _ = queue.push("light", 0.1, 0, cost)
    first = queue.pop()
    assert first is light or (served % len(flood) == 0 and queue.pop() is light)


def test_full_in_requests_and_in_tokens() -> None:
    queue = FairQueue(2, 100)
    fill(queue, "a", [60])
    with pytest.raises(QueueFull):
        queue.push("a", 1, 0, 41)
    fill(queue, "a", [40])
    with pytest.raises(QueueFull):
        queue.push("a", 1, 0, 1)
    assert (queue.requests, queue.tokens) == (2, 100)
    assert queue.full_for("a", 1) and not queue.full_for("b", 1)


def test_one_request_above_the_token_bound_may_wait_alone() -> None:
    queue = FairQueue(2, 100)
    fill(queue, "a", [500])
    with pytest.raises(QueueFull):
        queue.push("a", 1, 0, 1)


def test_no_queue_at_all() -> None:
    with pytest.raises(QueueFull):
        FairQueue(0, 100).push("a", 1, 0, 1)
    assert FairQueue(0, 100).full_for("a", 1)


def test_a_light_newcomer_displaces_the_newest_of_the_flood() -> None:
    queue = FairQueue(4, 10**6)
    flood = [queue.push("flood", 1, priority, 10)[0] for priority in (0, 0, 1, 0)]
    _, displaced = queue.push("light", 1, 0, 10)
    assert displaced == [flood[2]] and not flood[2].waiting  # its least urgent
    _, displaced = queue.push("light", 1, 0, 10)
    assert displaced == [flood[3]]
    with pytest.raises(QueueFull):  # that would be more than half
        queue.push("light", 1, 0, 10)
    assert (queue.requests, queue.holds("flood"), queue.holds("light")) == (4, 2, 2)


def test_displacing_frees_as_many_tokens_as_are_needed() -> None:
    queue = FairQueue(100, 100)
    flood = fill(queue, "flood", [20] * 5)
    _, displaced = queue.push("light", 1, 0, 45)
    assert displaced == [flood[4], flood[3], flood[2]] and queue.tokens == 85


def test_nobody_is_displaced_below_a_fair_share() -> None:
    queue = FairQueue(100, 100)
    one, other = fill(queue, "one", [10] * 5), fill(queue, "other", [10] * 5)
    _, displaced = queue.push("light", 1, 0, 30)
    assert sorted(map(id, displaced)) == sorted(map(id, [*one[-2:], other[-1]]))


class Traffic(RuleBasedStateMachine):
    """Any order of pushes, pops and removals: bounds hold, sums agree, displacing is just, nothing is left."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(6, 2000)
        self.waiting: list[Entry] = []

    @rule(tenant=TENANTS, priority=st.integers(-2, 2), cost=st.integers(1, 3000))
    def push(self, tenant: str, priority: int, cost: int) -> None:
        before, held = len(self.waiting), Counter(one.tenant for one in self.waiting)
        try:
            entry, displaced = self.queue.push(tenant, WEIGHTS[tenant], priority, cost)
        except QueueFull:
            assert self.queue.requests == before > 0
            return
        self.waiting = [one for one in self.waiting if one not in displaced] + [entry]
        assert before + 1 - len(displaced) == len(self.waiting)
        total = sum(WEIGHTS[name] for name in {*held, tenant})
        for one in displaced:
            assert one.tenant != tenant and not one.waiting
        if displaced:
            assert (held[tenant] + 1) / 6 <= WEIGHTS[tenant] / total

    @rule()
    def pop(self) -> None:
        entry = self.queue.pop()
        assert (entry is None) == (not self.waiting)
        if entry is not None:
            assert entry.priority == min(one.priority for one in self.waiting if one.tenant == entry.tenant)
            self.waiting.remove(entry)
            assert not self.queue.remove(entry)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(entry) and not self.queue.remove(entry)
        self.waiting.remove(entry)

    @invariant()
    def sums_agree(self) -> None:
        queue = self.queue
        assert queue.requests == len(self.waiting) <= 6
        assert queue.tokens == sum(entry.cost for entry in self.waiting)
        assert queue.tokens <= 2000 or queue.requests == 1
        assert len(queue._order) == len(queue._tenants) == len({entry.tenant for entry in self.waiting})
        assert queue._weight == sum(WEIGHTS[name] for name in queue._tenants)
        if not self.waiting:
            assert not (queue._order or queue._tenants or queue._finished or queue._now)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_memory_does_not_grow_with_tenants_that_come_and_go() -> None:
    queue = FairQueue(10, 10**6)
    fill(queue, "stays", [10] * 2)
    for index in range(2000):
        queue.remove(queue.push(f"gone-{index}", 1, index, 5)[0])
        queue.push(f"served-{index}", 1, index, 5)
        queue.push("stays", 1, 0, 10)
        assert queue.pop() is not None and queue.pop() is not None
        assert queue.holds("stays") >= 1
    assert len(queue._finished) <= 40  # those ahead of the virtual time, and no more than twice them
    assert len(queue._tenants) == len(queue._order) <= 2
