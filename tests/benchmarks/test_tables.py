"""From made-up turns to rows, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from thriftree.benchmarks import contenders, measure, plot, summary, table
from thriftree.benchmarks.measure import Pass
from thriftree.benchmarks.prompts import Prompt
from thriftree.benchmarks.worker import Answer, Ask, Turn

STEPS = {"off": 8, "ngram": 4, "trees": 2}  # of an answer of 8 tokens; every step takes a second


class Clockwork:
    """Engines that answer without a model."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.order: list[tuple[str, str]] = []

    def generate(self, key: str, asks: Sequence[Ask], in_flight: int) -> Turn:
        self.order.append((key, asks[0].salt))
        steps = STEPS[key]
        answers = []
        for _ in asks:
            sizes = [1, *[7 // (steps - 1)] * (steps - 1)]
            sizes[-1] += 8 - sum(sizes)
            tokens = list(range(8)) if key != self.wrong else [9] * 8
            answers.append(Answer(tokens, [float(i + 1) for i in range(steps)], sizes))
        return Turn(answers, wall=float(steps), steps=steps, cpu=steps * 0.5)


def _rows(wrong: str = "", batches: Sequence[int] = (1,)) -> list[summary.Row]:
    rivals = contenders.build(("off", "ngram", "auto"), model="m", dtype="float32", eager=False, max_model_len=64)
    engines, samples = Clockwork(wrong), []
    for batch in batches:
        groups = [[Prompt(category, "", (1, 2))] * batch for category in ("qa", "code", "qa")]
        samples += measure.run(engines, rivals, Pass("float32", "cold", batch, "t", groups, 8))
    return summary.rows(samples, seed=0)


def test_rows() -> None:
    row = next(r for r in _rows() if r.method == "auto" and r.category == summary.ALL)
    assert row.wall == pytest.approx(4.0) and row.to_ngram == pytest.approx(2.0)
    assert (row.wall_low, row.wall_high) == (pytest.approx(4.0), pytest.approx(4.0))
    assert row.per_step == pytest.approx(4.0) and row.per_decode_step == pytest.approx(7.0)
    assert row.decode == pytest.approx(7.0) and row.cpu == pytest.approx(0.25)
    assert row.cpu_per_step == pytest.approx(0.5)
    assert (row.prompts, row.mismatches) == (3, 0)


def test_a_single_prompt_has_no_spread() -> None:
    row = next(r for r in _rows() if r.category == "code" and r.method == "auto")
    assert table.cells(row)[table.COLUMNS.index("spread")] == "-"
    assert row.as_dict()["wall_low"] is None


def test_categories_first_then_all_of_them() -> None:
    mine = [row.category for row in _rows() if row.method == "auto"]
    assert mine == ["code", "qa", summary.ALL]


def test_batches_have_no_categories() -> None:
    rows = _rows(batches=(1, 2))
    assert [row.category for row in rows if row.batch == 2] == [summary.ALL] * 3
    assert summary.gains(rows, "float32")["auto"] == {1: pytest.approx(4.0), 2: pytest.approx(4.0)}
    assert "float32 auto: the gain stays above 1.0 up to 2" in summary.crossings(rows)


def test_answers_that_differ_are_counted() -> None:
    assert {row.mismatches for row in _rows(wrong="ngram") if row.method == "ngram"} == {1, 2, 3}


def test_turns_rotate() -> None:
    engines = Clockwork()
    rivals = contenders.build(("off", "ngram", "auto"), model="m", dtype="float32", eager=False, max_model_len=64)
    groups = [[Prompt("qa", "", (1,))]] * 3
    list(measure.run(engines, rivals, Pass("float32", "cold", 1, "t", groups, 8)))
    assert [key for key, _ in engines.order[::3]] == ["off", "ngram", "trees"]
    assert len({salt for _, salt in engines.order}) == 3  # prefix-cache hits stay within a contender


def test_table_and_page() -> None:
    console = Console(width=120, record=True, quiet=True)
    rows = _rows()
    table.show(console, rows, {"vllm_suffix": "not installed (why)"})
    page = table.markdown(rows, {"vllm_suffix": "not installed"}, {"lines": ["the machine"]})
    assert "- the machine" in page and "not installed" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert widths == {len(table.COLUMNS) + 1}
    assert all(len(table.cells(row)) == len(table.COLUMNS) for row in rows)


def test_terminal_plot_marks_plain_vllm() -> None:
    drawn = plot.text({"auto": {1: 2.0, 8: 0.5}}, "title").splitlines()
    assert drawn[0] == "title" and "2.00x" in drawn[1] and all(":" in line for line in drawn[1:])
    assert plot.text({}, "title") == ""


def test_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot.png({"float32": {"auto": {1: 1.5, 2: 1.2}}}, tmp_path / "p.png", "caption")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
