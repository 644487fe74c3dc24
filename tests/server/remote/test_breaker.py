from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from thriftree.server.remote.breaker import Breaker, Rules

RULES = Rules(window=10, failures=3, share=0.5, first=1, longest=8)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def broken() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock, RULES)
    for _ in range(RULES.failures):
        breaker.fail(breaker.begin())
    return breaker, clock


def test_opens_after_failures() -> None:
    breaker = Breaker(Clock(), RULES)
    for _ in range(RULES.failures - 1):
        breaker.fail(breaker.begin())
    assert breaker.admits() and breaker.state == "closed"
    breaker.fail(breaker.begin())
    assert not breaker.admits() and breaker.state == "open" and breaker.retry_in() == 1


def test_failures_among_many_successes_do_not_open() -> None:
    breaker = Breaker(Clock(), RULES)
    for _ in range(50):
        for _ in range(2):
            breaker.succeed(breaker.begin())
        breaker.fail(breaker.begin())
    assert breaker.state == "closed"


def test_old_outcomes_are_forgotten() -> None:
    clock = Clock()
    breaker = Breaker(clock, RULES)
    for _ in range(20):
        breaker.fail(breaker.begin())
        clock.now += RULES.window / 2
    assert breaker.state == "closed"


def test_one_trial_then_closed() -> None:
    breaker, clock = broken()
    clock.now += 1
    assert breaker.state == "half-open" and breaker.admits()
    trial = breaker.begin()
    assert not breaker.admits()
    breaker.succeed(trial)
    assert breaker.state == "closed"
    breaker.fail(breaker.begin())
    assert breaker.state == "closed"  # earlier failures are forgotten


def test_back_off_doubles_up_to_the_longest_and_begins_anew() -> None:
    breaker, clock = broken()
    waits = []
    for _ in range(5):
        waits.append(breaker.retry_in())
        clock.now += breaker.retry_in()
        breaker.fail(breaker.begin())
    assert waits == [1, 2, 4, 8, 8]
    clock.now += 8
    breaker.succeed(breaker.begin())
    for _ in range(RULES.failures):
        breaker.fail(breaker.begin())
    assert breaker.retry_in() == 1


def test_an_abandoned_trial_gives_way_to_another() -> None:
    breaker, clock = broken()
    clock.now += 1
    breaker.abandon(breaker.begin())
    assert breaker.admits()


def test_outcomes_of_earlier_requests_do_not_count() -> None:
    clock = Clock()
    breaker = Breaker(clock, RULES)
    old = [breaker.begin() for _ in range(4)]
    for _ in range(RULES.failures):
        breaker.fail(breaker.begin())
    breaker.succeed(old[0])
    breaker.fail(old[1])
    assert breaker.state == "open" and breaker.retry_in() == 1
    clock.now += 1
    trial = breaker.begin()
    breaker.abandon(old[2])
    breaker.succeed(old[3])
    assert breaker.state == "half-open" and not breaker.admits()
    breaker.succeed(trial)
    assert breaker.state == "closed"


class Life(RuleBasedStateMachine):
    """Any order of requests, outcomes and pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(self.clock, RULES)
        self.tickets: list[int] = []
        self.trials = 0  # begun while not closed, in the present era
        self.last = "closed"

    @precondition(lambda self: self.breaker.admits())
    @rule()
    def begin(self) -> None:
        self.tickets.append(self.breaker.begin())

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), outcome=st.sampled_from(["succeed", "fail", "abandon"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        getattr(self.breaker, outcome)(ticket)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def what_always_holds(self) -> None:
        breaker = self.breaker
        assert 0 <= breaker.retry_in() <= RULES.longest
        assert (breaker.state == "open") == (breaker.retry_in() > 0)
        if breaker.state == "open":
            assert not breaker.admits()
        if breaker.state == "closed":
            assert breaker.admits()

    @invariant()
    def it_never_locks_up(self) -> None:
        """With nothing in flight and the back-off over, a request is let through."""
        if not self.tickets and self.breaker.retry_in() == 0:
            assert self.breaker.admits()


TestLife = Life.TestCase
