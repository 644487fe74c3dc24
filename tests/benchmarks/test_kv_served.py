"""Capacity and cost on a tiny model: the smallest real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thriftree.benchmarks.kv import parts
from thriftree.zoo import tiny

pytestmark = pytest.mark.engine


def test_the_same_bytes_serve_more(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    argv = ["--only", "capacity", "--model", str(tiny.ensure("llama-gqa")), "--eager", "--budget", "96"]
    argv += ["--requests", "10", "--pool", "1536", "--rows", "stock", "streaming_llm", "--json", str(out)]
    assert parts.main(argv) == 0
    result = json.loads(out.read_text())
    stock, ours = result["rows"]
    assert stock["pool"]["bytes"] == ours["pool"]["bytes"]
    assert stock["tokens"] == ours["tokens"] == 640
    assert stock["leaked"] == ours["leaked"] == 0
    assert ours["preemptions"] == 0 and max(ours["running"]) >= 3 * max(stock["running"])
    long = [line for line in result["lines"] if line.startswith("pool of")]
    assert "stock does not start" in long[0] and "serves it, 64 tokens" in long[1]


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
