"""The example in docs/add-a-method.md is a drafter that works, through the registry and the pool."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from thriftree.plugins.speculative import registry
from thriftree.plugins.speculative.pool import DrafterPool

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def test_the_example_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    module = ModuleType("thriftree.plugins.speculative.echo")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code[1], str(PAGE), "exec"), module.__dict__)
    line = re.search(r'"echo": (\(.*?\)),', PAGE.read_text())
    assert line is not None
    monkeypatch.setitem(registry._METHODS, "echo", eval(line[1]))

    pool = DrafterPool(default="echo")
    pool.start("r", "t", [1, 2, 3, 1])
    assert list(pool.propose("r", 8, 2).tokens) == [2, 3]
    pool.emit("r", [9])
    assert len(pool.propose("r", 8, 8)) == 0
    assert "belief" in registry.describe("echo").parameters["properties"]
    with pytest.raises(ValueError, match="belief"):
        pool.start("s", "t", [1], "echo", {"belief": 2})
