"""`thriftree bench vision`: tables from figures, and the smallest real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from thriftree.benchmarks.vision import parts, report, throughput, timing
from thriftree.benchmarks.vision.policies import CONTROLS, policies
from thriftree.benchmarks.vision.quality import FULL, Figure
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.request import Terms, checked
from thriftree.zoo import tiny_vision


def figure(policy: str, keep: float, seed: int, right: int, text: int = 0) -> Figure:
    return Figure(policy, keep, seed, {"count": 100, "text": 100}, {"count": right, "text": text}, 40.0)


FIGURES = [
    figure(FULL, 1.0, 0, 100, 100),
    figure(FULL, 1.0, 1, 100, 96),
    figure("divprune", 0.33, 0, 100, 98),
    figure("divprune", 0.33, 1, 100, 98),
    figure("divprune", 0.11, 0, 100, 90),
    figure("divprune", 0.11, 1, 100, 94),
    figure("random", 0.33, 0, 50),
    figure("random", 0.33, 1, 60),
]


def test_table() -> None:
    heads, lines = report.cells(FIGURES)
    assert heads == ["policy", "33 %", "11 %", "100 %"]
    assert lines == [
        [FULL, "", "", "99.0 ± 1.0"],
        ["divprune", "99.0 ± 0.0", "96.0 ± 1.0", ""],
        ["random", "27.5 ± 2.5", "-", ""],
    ]
    assert report.kinds(FIGURES, 0.11) == (
        ["at 11 %", "count", "text"],
        [[FULL, "100", "98"], ["divprune", "100", "92"]],
    )
    assert report.markdown(heads, lines).splitlines()[1] == "| --- | ---: | ---: | ---: |"


def test_verdicts() -> None:
    assert report.verdicts(FIGURES) == [
        "99 % of the unpruned accuracy: divprune at 33 % (99.0 %)",
        "98 % of the unpruned accuracy: divprune at 33 % (99.0 %)",
        "95 % of the unpruned accuracy: divprune at 11 % (96.0 %)",
    ]
    worse = [figure(FULL, 1.0, 0, 100, 100), figure("random", 0.5, 0, 10)]
    assert report.verdicts(worse)[0] == "99 % of the unpruned accuracy: none"


def test_every_method_is_a_row_and_a_request() -> None:
    made = policies()
    assert {policy.method for policy in made} == set(registry.names())
    assert tuple(policy.name for policy in made[-3:]) == CONTROLS
    for policy in made:
        assert checked(policy.vision(0.5), Terms(None))["method"] == policy.method


@pytest.mark.parametrize(
    "argv",
    [
        ["--policies", "magic"],
        ["--keep", "0"],
        ["--seeds", "0", "--questions", "-1"],
        ["--only", "nothing"],
        ["--only", "time", "--policies", "magic"],
        ["--only", "time", "--rounds", "0"],
        ["--only", "time", "--keep", "0.1", "1.5"],
        ["--only", "time", "--shape", "huge"],
    ],
)
def test_bad_flags(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert parts.main(argv) == 2
    assert capsys.readouterr().err


def test_times() -> None:
    spent = {"encoder": 0.2, "selection": 0.0, "prefill": 0.4, "first token": 0.7}
    pruned = {"encoder": 0.2, "selection": 0.01, "prefill": 0.1, "first token": 0.35}
    heads, lines = timing.lines([timing.Sample(timing.WHOLE, 0, 600, spent), timing.Sample("random", 0, 90, pruned)])
    assert len(heads) == len(lines[0])
    assert lines[1] == ["random", "90", "200.0", "10.0", "100.0", "350.0", "0.25", "0.50", "5.0"]


def test_rows_of_the_clock() -> None:
    """The first policy at every share, the others at the first."""
    assert list(timing.cells(["divprune"], [0.5])) == [timing.WHOLE, "divprune"]
    several = timing.cells(["divprune", "visionzip"], [0.11, 0.5])
    assert list(several) == [timing.WHOLE, "divprune 11 %", "divprune 50 %", "visionzip 11 %"]
    late = timing.cells(["divprune"], [0.5], 4)
    assert list(late)[2:] == ["leave at 4", "leave at 4, attention", "divprune, leave at 4"]
    assert [one["late"]["keep"] for one in list(late.values())[2:]] == [0.0, 0.5, 0.0]
    assert several["divprune 50 %"] == {"method": "divprune", "keep": 0.5}


def test_rates() -> None:
    found = [throughput.Rate(row, 1, 64, 0.5, engine) for row, engine in (("all", 2.0), ("random", 1.0), ("all", 4.0))]
    heads, lines = throughput.table(found)
    assert len(heads) == len(lines[0])
    assert lines == [["all", "1", "3.00", "21.3", "1.00", "0.50"], ["random", "1", "1.00", "64.0", "3.00", "0.50"]]


@pytest.mark.engine
def test_questions_about_pictures_and_a_run_that_goes_on(tmp_path: Path) -> None:
    """On a random model: what it says is nonsense, what it is sent is counted."""
    out, checkpoint = tmp_path / "out.json", tmp_path / "run.jsonl"
    argv = ["--model", str(tiny_vision.ensure("llava")), "--questions", "28", "--policies", "divprune", "random"]
    argv += ["--keep", "0.5", "0.05"]
    argv += ["--checkpoint", str(checkpoint), "--json", str(out), "--markdown", str(tmp_path / "out.md")]
    assert parts.main([*argv, "--minutes", "0"]) == 3
    subprocess.run([sys.executable, "-m", "thriftree.benchmarks.vision.main", *argv], check=True)
    found = {(f["policy"], f["keep"]): f for f in json.loads(out.read_text())["figures"]}
    assert sum(found["random", 0.05]["asked"].values()) == 28
    for policy in ("divprune", "random"):
        fewer = [found[FULL, 1.0]["tokens"] - found[policy, keep]["tokens"] for keep in (0.5, 0.05)]
        assert fewer == pytest.approx([72, 137])
    assert len(checkpoint.read_text().splitlines()) == 5
    assert "| divprune |" in (tmp_path / "out.md").read_text()


@pytest.mark.engine
def test_where_the_time_goes(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    argv = ["--rounds", "1", "--policies", "random", "--requests", "2", "--json", str(out)]
    subprocess.run([sys.executable, "-m", "thriftree.benchmarks.vision.timing", *argv], check=True)
    found = json.loads(out.read_text())
    whole, pruned = found["samples"]
    assert {(rate["row"], rate["tokens"]) for rate in found["rates"]} >= {("random", 1), (timing.WHOLE, 32)}
    assert whole["prompt"] - pruned["prompt"] == 576 - 64
    assert 0 < pruned["parts"]["selection"] < pruned["parts"]["encoder"]
    assert pruned["parts"]["prefill"] < whole["parts"]["prefill"]
