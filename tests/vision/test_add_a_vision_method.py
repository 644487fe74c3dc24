"""The example in docs/add-a-vision-method.md is a method that works, through the registry and on an image."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.vision.vision_methods import METHODS
from tests.vision.vision_toy import grid, image
from thriftree.plugins.vision import registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-vision-method.md"


def test_the_example_keeps_loud_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    line = re.search(r'"loud": (\(.*?\)),', PAGE.read_text())
    assert code is not None and line is not None
    module = ModuleType("thriftree.plugins.vision.loud")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code[1], str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(registry._METHODS, "loud", eval(line[1]))

    loud = registry.configure("loud")
    picture = image(loud, 2, grid(30))
    picture.features[[4, 20, 25]] *= 100
    tap = next(iter(picture.taps))
    attention = torch.ones(30)
    attention[20] = 0.0
    assert loud.pick(replace(picture, taps={tap: attention})).rows.tolist() == [4, 25]
    assert registry.describe("loud").needs_attention
    with pytest.raises(ValueError, match=r"^order: must be between"):
        registry.configure("loud", {"order": 0.5})
    with pytest.raises(ValueError, match=r"^method: "):
        loud.check(None)


def test_the_page_names_what_exists() -> None:
    for name in re.findall(r"`((?:plugins|tests|docs)/[\w/-]+\.(?:py|md))`", PAGE.read_text()):
        assert (ROOT / name).exists() or name.endswith("loud.py"), name
    assert METHODS


def test_every_method_is_a_row_of_the_table() -> None:
    """Name, paper, and what it needs, as the code says it."""
    page = (ROOT / "docs" / "vision.md").read_text()
    table = page[page.index("\n## Methods\n") : page.index("\n## What a method is blind to\n")]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.MULTILINE))
    assert list(rows) == list(registry.names())
    for name, row in rows.items():
        said = registry.describe(name)
        _, paper, needs, merges = (cell.strip() for cell in row.split("|"))
        assert said.paper in paper and (said.paper or paper == "control")
        assert ("attention" in needs) == (said.needs_attention or name == "dpp")
        assert ("question" in needs) == said.needs_text
        assert merges == ("yes" if said.merges else "no")
