"""The off-line study on a small made-up log."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from toy import RandomTarget, greedy

from thriftree.benchmarks import draft_study
from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.registry import build


@pytest.fixture
def log() -> list[dict[str, Any]]:
    target = RandomTarget(vocabulary=12, order=2, seed=1)
    answers = []
    for a in range(6):
        prompt = [random.Random(a).randrange(12) for _ in range(10)]
        text = list(prompt)
        for _ in range(20):
            text.append(greedy(target.law(text)))
        tops = [target.row(text[:i])[:8] if i else [] for i in range(len(text))]
        answers.append({"cat": f"set:{a % 2}", "prompt": prompt, "ids": text[10:], "ptop": tops[:10], "top": tops[10:]})
    return answers


@pytest.mark.parametrize("seed", list(draft_study.SEEDS))
def test_every_token_is_counted_once(log: list[dict[str, Any]], seed: str) -> None:
    tally = draft_study.replay(log, lambda: build("auto", Memory()), 8, seed, warm=True)
    assert tally.tokens == sum(len(a["ids"]) for a in log)
    assert len(log) < tally.steps < tally.tokens
    assert sum(t for t, _ in tally.by_category.values()) == tally.tokens


def test_nothing_drafted_is_one_token_a_step(log: list[dict[str, Any]]) -> None:
    assert draft_study.replay(log, lambda: build("auto", Memory()), 0, "all", warm=True).tokens_per_step == 1.0


def test_the_command_prints_a_table(log: list[dict[str, Any]], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    monkeypatch.setattr(sys, "argv", ["draft_study", str(path), "--nodes", "4", "--categories"])
    draft_study.main()
    out = capsys.readouterr().out
    assert out.startswith("6 answers, 120 tokens")
    assert out.count("token_recycling") == 2
    monkeypatch.setattr(sys, "argv", ["draft_study", str(path), "--fit"])
    draft_study.main()
    fitted: dict[str, Any] = {}
    exec(capsys.readouterr().out, fitted)
    assert len(fitted["ROWS"]) == draft_study.ROW_CLASSES
