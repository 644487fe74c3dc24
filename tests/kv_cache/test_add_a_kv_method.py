"""The example in docs/add-a-kv-method.md is a method that works, through the registry and on a cache."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from kv_toy import HEADS, Toy

from thriftree.plugins.kv_cache import registry

PAGE = Path(__file__).parents[2] / "docs" / "add-a-kv-method.md"


def test_the_example_compresses(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    line = re.search(r'"vnorm": (\(.*?\)),', PAGE.read_text())
    assert code is not None and line is not None
    module = ModuleType("thriftree.plugins.kv_cache.vnorm")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code[1], str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(registry._METHODS, "vnorm", eval(line[1]))

    toy = Toy(registry.configure("vnorm"), 30)
    toy.values[:, 7] *= 100
    toy.grow(30)
    toy.compress(6, sinks=2, recent=3)
    assert toy.kept() == [[0, 1, 7, 27, 28, 29]] * HEADS
    assert "order" in registry.describe("vnorm").parameters["properties"]
    with pytest.raises(ValueError, match=r"^order: must be between"):
        registry.configure("vnorm", {"order": 0.5})


def test_the_page_names_what_exists() -> None:
    root = PAGE.parents[1]
    for name in re.findall(r"`((?:plugins|tests)/[\w/]+\.py)`", PAGE.read_text()):
        assert (root / name).exists() or name.endswith("vnorm.py"), name
    assert "METHODS" in (root / "tests/kv_cache/kv_methods.py").read_text()
