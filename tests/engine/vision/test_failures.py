"""A method that raises: evenly spaced rows stay, and whoever asks the workers hears of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thriftree.plugins.engine.vision.failures import EXTENSION, FAILURES
from thriftree.plugins.vision.divprune import DivPrune
from thriftree.zoo import tiny_vision

from ..engines import engine
from .pruned import OPTIONS, expected, pruning, wish
from .reference import Reference
from .scenarios import assert_equal, flags

pytestmark = pytest.mark.engine


class Mine:
    """An operator's extension."""

    def hello(self) -> str:
        return "mine"


def fail(*_: Any) -> Any:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("trees", [None, {"max_nodes": 8, "adaptive": False}], ids=["vLLM's worker", "ours"])
def test_failures_are_counted(trees: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tiny_vision.ensure("llava"))
    reference = Reference(path)
    FAILURES.clear()
    with pruning(path, trees) as (running, picks):
        assert running.llm.collective_rpc("__thrift_vision_failures__") == [{}]
        monkeypatch.setattr(DivPrune, "select", fail)
        settings = ({"method": "divprune", "keep": 0.25}, {"method": "random", "keep": 0.5})
        asks = [wish(reference.processor.tokenizer, "llava", "two", one) for one in settings]
        assert_equal(running.run(asks), [expected(reference, picks, one) for one in asks])
        assert running.llm.collective_rpc("__thrift_vision_failures__") == [{"divprune": 2}]
    spaced = [chosen.rows for plan, _, chosen in picks.made if plan.name == "divprune"]
    assert len(spaced) == 2 and all(torch.equal(rows, torch.arange(36) * 4) for rows in spaced)


def test_an_operators_own_extension_stays() -> None:
    path = str(tiny_vision.ensure("llava"))
    for pruned in (OPTIONS, {}):
        with engine(path, **flags(additional_config=pruned, worker_extension_cls=f"{__name__}.Mine")) as running:
            assert running.llm.collective_rpc("hello") == ["mine"]
    with engine(path, **flags(additional_config={})) as running:
        assert running.engine.vllm_config.parallel_config.worker_extension_cls != EXTENSION
