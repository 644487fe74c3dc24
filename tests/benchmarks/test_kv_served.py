"""The cost of a step on a tiny model: the smallest real run."""

from __future__ import annotations

import json
from pathlib import Path

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
