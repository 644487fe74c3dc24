"""What a profile becomes on which machine."""

from __future__ import annotations

import argparse

import pytest

from thriftree.plugins.engine import launch

KV, VISION = {"compression": "auto"}, {"pruning": "auto"}


def flags() -> argparse.Namespace:
    return argparse.Namespace(additional_config=None, speculative_config=None, async_scheduling=None)


def test_trees_by_default() -> None:
    args = flags()
    assert launch.configure(args, {"max_nodes": 9}, dict(KV), dict(VISION))
    assert args.speculative_config["num_speculative_tokens"] == 9
    assert set(args.additional_config["thriftree"]) == {"speculation", "kv", "vision"}


def test_a_gpu_starts_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images can be pruned there; vLLM's own scheduling and speculation are left as they are."""
    monkeypatch.setattr(launch, "_on_cpu", lambda: False)
    args = flags()
    args.async_scheduling = True
    assert not launch.configure(args, {"max_nodes": 16, "method": "auto"}, dict(KV), dict(VISION))
    assert args.speculative_config is None
    assert set(args.additional_config["thriftree"]) == {"kv", "vision"}


@pytest.mark.parametrize("late", [None, 2])
def test_who_insists_on_trees_is_told(monkeypatch: pytest.MonkeyPatch, late: int | None) -> None:
    monkeypatch.setattr(launch, "_on_cpu", lambda: late is not None)
    with pytest.raises(ValueError, match=r"^--speculation-max-nodes: .* with (a GPU|--vision-late-layer 2)"):
        launch.configure(flags(), {"max_nodes": 9, "method": "auto"}, dict(KV), {**VISION, "late_layer": late})
