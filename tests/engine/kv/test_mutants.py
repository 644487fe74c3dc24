"""The comparison with plain torch bites: each of these faults, put in on purpose, is seen by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from thriftree.kernels import kv_rows
from thriftree.plugins.engine.kv.manager import CompressingKVCacheManager
from thriftree.plugins.engine.kv.ragged_step import RaggedStep
from thriftree.plugins.engine.kv.read import ReadRows
from thriftree.plugins.engine.kv.ring import QueryRing
from thriftree.plugins.engine.kv.step_rows import StepRows
from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from . import reference
from .replay import Recorder, asking, head_file, prompts, replay

pytestmark = pytest.mark.engine
Patch = pytest.MonkeyPatch


def rows_stay_where_they_were(patch: Patch) -> None:
    patch.setattr(kv_rows.Mover, "__call__", lambda *args: None)


def context_is_not_shortened(patch: Patch) -> None:
    stock = StepRows.shifted

    def shifted(self: StepRows, common: Any, *args: Any) -> Any:
        done = stock(self, common, *args)
        done.seq_lens = common.seq_lens
        return done

    patch.setattr(StepRows, "shifted", shifted)


def table_is_not_shifted(patch: Patch) -> None:
    stock = StepRows.shifted

    def shifted(self: StepRows, common: Any, *args: Any) -> Any:
        done = stock(self, common, *args)
        done.block_table_tensor = common.block_table_tensor
        return done

    patch.setattr(StepRows, "shifted", shifted)


def blocks_go_back_too_early(patch: Patch) -> None:
    stock = CompressingKVCacheManager._free_outside
    patch.setattr(
        CompressingKVCacheManager, "_free_outside", lambda self, name, plan, n: stock(self, name, plan, n + 64)
    )


def heads_swap_their_tables(patch: Patch) -> None:
    stock = RaggedStep.__init__

    def init(self: RaggedStep, *args: Any) -> None:
        stock(self, *args)
        self._tables = self._tables.flip(1)

    patch.setattr(RaggedStep, "__init__", init)


def heads_are_a_row_short(patch: Patch) -> None:
    stock = RaggedStep.__init__

    def init(self: RaggedStep, *args: Any) -> None:
        stock(self, *args)
        self._ctx = self._ctx - 1

    patch.setattr(RaggedStep, "__init__", init)


def queries_are_a_step_old(patch: Patch) -> None:
    stock = QueryRing.newest
    patch.setattr(QueryRing, "newest", lambda self, layer, length, *args: stock(self, layer, length - 1, *args))


def other_blocks_are_read(patch: Patch) -> None:
    stock = ReadRows.tables
    patch.setattr(ReadRows, "tables", lambda self, blocks: torch.roll(stock(self, blocks), 1, dims=0))


FAULTS: list[tuple[Callable[[Patch], None], dict[str, Any]]] = [
    (rows_stay_where_they_were, {"method": "keydiff"}),
    (rows_stay_where_they_were, {"method": "keydiff", "per_head": True}),
    (context_is_not_shortened, {"method": "streaming_llm"}),
    (table_is_not_shifted, {"method": "streaming_llm"}),
    (blocks_go_back_too_early, {"method": "keydiff"}),
    (heads_swap_their_tables, {"method": "razor_attention"}),
    (heads_are_a_row_short, {"method": "keydiff", "per_head": True}),
    (queries_are_a_step_old, {"method": "snapkv"}),
    (other_blocks_are_read, {"method": "recycled_attention"}),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    heads = head_file(tmp_path_factory.mktemp("heads") / "tiny.heads.json")
    ours = {"thriftree": {"kv": {"heads": heads}}}
    flags = {"block_size": 32, "max_num_batched_tokens": 96, "num_gpu_blocks_override": 120, "additional_config": ours}
    with engine(str(tiny.ensure("llama-gqa")), **flags) as here:
        yield here


@pytest.mark.parametrize(("fault", "rule"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_is_seen(
    running: Engine, fault: Callable[[Patch], None], rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reference.load(str(tiny.ensure("llama-gqa")))
    fault(monkeypatch)
    first = running._serial
    asks = [Ask(prompt, asking({**rule, "budget": 128})) for prompt in prompts(300, 260, seed=first)]
    recorder = Recorder(running, monkeypatch)
    answers = running.run(asks)
    worst = 0.0
    for i, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        try:
            worst = max(worst, replay(model, running, recorder.of(first + i), ask, answer)[0])
        except AssertionError as error:
            assert "kept other rows" in str(error)
            worst = float("inf")
    assert worst > 1e-2
