"""The smallest real run: two engines in turns on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thriftree.benchmarks import speculation
from thriftree.zoo import tiny


@pytest.mark.engine
def test_two_prompts_through_two_engines(tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.md"
    argv = ["--model", str(tiny.ensure("llama-bytes")), "--eager", "--methods", "off", "auto", "--batch", "1"]
    argv += ["--categories", "qa", "math", "--tokens", "8", "--json", str(out), "--markdown", str(page)]
    assert speculation.main(argv) == 0  # 1 if an answer differed
    result = json.loads(out.read_text())
    assert {(s["method"], s["category"]) for s in result["samples"]} == {
        (method, category) for method in ("off", "auto") for category in ("qa", "math")
    }
    assert all(s["wall"] > 0 and s["cpu"] > 0 and s["requests"][0]["tokens"] <= 8 for s in result["samples"])
    off = next(r for r in result["rows"] if r["method"] == "off" and r["category"] == "geometric mean")
    assert off["wall"] == 1.0 and off["per_step"] == 1.0
    assert result["conditions"]["idle_cores_float32"] < 0.05
    assert result["engines"]["float32/trees"]["stats"]["state_bytes"] >= 0
    assert "| auto |" in page.read_text()
