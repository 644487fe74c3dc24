"""The cost of a step and what the same bytes hold, on a tiny model: the smallest real runs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from thriftree.benchmarks.kv import parts
from thriftree.zoo import tiny

pytestmark = pytest.mark.engine


def test_a_step_beside_stock(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    argv = ["--only", "cost", "--model", str(tiny.ensure("llama-gqa")), "--eager", "--budget", "96", "--rounds", "1"]
    argv += ["--batch", "1", "8", "--rows", "keydiff, per head", "observed", "--json", str(out)]
    assert parts.main(argv) == 0
    result = json.loads(out.read_text())
    assert {(s["row"], s["batch"]) for s in result["samples"]} == {
        (row, batch) for row in ("stock", "observed", "keydiff, per head") for batch in (1, 8)
    }
    for sample in result["samples"]:
        assert len(sample["gaps"]) == 64 and sample["decode"] > 0
        if sample["row"] != "stock":
            assert sample["spent"]["calls"]["event"] >= 2 * sample["batch"], "two events while a request decodes"
            assert sample["spent"]["side_share"] > 0


def test_the_same_bytes_hold_three_times_the_requests(tmp_path: Path) -> None:
    """Budget: an eighth of the prompt. No request loses its cache, no block its way back."""
    out = tmp_path / "out.json"
    argv = ["--only", "capacity", "--model", str(tiny.ensure("llama-gqa")), "--eager", "--requests", "16"]
    argv += ["--rows", "stock", "snapkv", "keydiff, per head", "snapkv, cap", "--json", str(out)]
    assert parts.main(argv) == 0
    result = json.loads(out.read_text())
    stock, *ours = result["rows"]
    assert len({row["pool"]["bytes"] for row in result["rows"]}) == 1
    assert max(stock["running"]) == 4 and stock["leaked"] == 0
    for row in ours:
        assert fmean(row["running"]) >= 3 * fmean(stock["running"]) and max(row["running"]) == 16, row["row"]
        assert (row["preemptions"], row["leaked"]) == (0, 0), row["row"]
    assert any("stock does not start" in line for line in result["lines"])
    assert any("cap serves it, 64 tokens" in line for line in result["lines"])
