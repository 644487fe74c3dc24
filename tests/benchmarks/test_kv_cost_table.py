"""From turns to costs, and which part of `thriftree bench kv` runs."""

from __future__ import annotations

import pytest

from thriftree.benchmarks.kv import parts
from thriftree.benchmarks.kv.cost_table import BASE, WHOLE, Sample, lines
from thriftree.benchmarks.kv.served import Spent


def _sample(row: str, number: int, gaps: list[float], first: float = 1.0, spent: Spent | None = None) -> Sample:
    return Sample(row, 1, number, 64 if row != BASE else 32, first, gaps, 0.0, sum(gaps), spent, True)


def test_ratios_are_to_the_same_round() -> None:
    spent = Spent({"event": 0.5, "weigh": 0.25, "prompt_event": 9.0}, {"event": 2}, 0.03)
    samples = [_sample(BASE, 0, [1.0, 1.0, 1.0]), _sample(WHOLE, 0, [1.5, 1.5, 1.5], first=2.0)]
    samples += [_sample("ours", 0, [1.1, 1.1, 4.1], first=3.0, spent=spent)]
    samples += [_sample(BASE, 1, [2.0, 2.0, 2.0]), _sample(WHOLE, 1, [3.0, 3.0, 3.0], first=2.0)]
    samples += [_sample("ours", 1, [2.0, 2.0, 2.0], first=5.0)]
    stock, whole, ours = lines(samples)
    assert stock.ratio == (1.0, 1.0, 1.0) and stock.share is None and stock.side is None and stock.first is None
    assert whole.ratio == (1.5, 1.5, 1.5)
    assert ours.ratio == pytest.approx((1.05, 1.0, 1.1))
    assert ours.mean == pytest.approx((2.1 + 1.0) / 2)
    assert ours.event == 0.25 and ours.share == pytest.approx(0.75 / 12.3), "what came with the prompt is not decoding"
    assert ours.first == pytest.approx(2.0) and ours.side == 0.03
    assert all(len(line.cells()) == 11 for line in (stock, whole, ours))


def test_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(parts, "_run", lambda name, argv: ran.append((name, list(argv))) or len(ran))
    assert parts.main(["--keep", "0.5"]) == 1 and parts.main(["--eager", "--only", "cost"]) == 2
    assert ran == [("quality", ["--keep", "0.5"]), ("cost", ["--eager"])]
    ran.clear()
    assert parts.main([]) == 3 and [name for name, _ in ran] == ["quality", "capacity", "cost"]
    assert parts.main(["--only", "speed"]) == 2
