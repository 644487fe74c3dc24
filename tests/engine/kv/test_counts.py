"""What a request is told of its cache is what happened: against the pool's own book-keeping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from thriftree.plugins.engine.async_llm import ThriftAsyncLLM
from thriftree.plugins.engine.contract_var import Report
from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from .replay import asking, head_file
from .test_trees import repeating

pytestmark = pytest.mark.engine
LENGTH, TOKENS, BLOCK = 400, 60, 32
SEEN = LENGTH + TOKENS - 1  # the last token of an answer is not cached


@dataclass
class Told:
    """One request at a time: what it was told, and what the pool saw."""

    running: Engine
    outputs: list[Any] = field(default_factory=list)
    allocated: int = 0
    held: int = 0  # blocks at its end
    usage: list[float] = field(default_factory=list)  # after each step, as the metric has it

    def ask(self, kv: Any, speculation: str = "auto", tokens: int = TOKENS, length: int = LENGTH) -> Report:
        running = self.running
        assert running.engine.reset_prefix_cache()
        self.outputs, self.usage, self.allocated = [], [], 0

        def look() -> None:
            if running.scheduler.running:
                self.usage.append(running.scheduler.make_stats().kv_cache_usage)

        running.run([Ask(repeating(length, 1), asking(kv, speculation, tokens))], look)
        report = Report()
        name = self.outputs[0].request_id
        client: Any = SimpleNamespace(_reports={name: (report, 0)}, _kv={}, _late=set(), _show_metrics=True)
        client._count_kv = lambda *args: ThriftAsyncLLM._count_kv(client, *args)
        client._forget = lambda name: ThriftAsyncLLM._forget(client, name)
        ThriftAsyncLLM._count(client, self.outputs)
        assert client._reports == client._kv == {} and all(out.kv_transfer_params is None for out in self.outputs)
        assert report.completion_tokens == tokens
        return report


@pytest.fixture(scope="module", params=[1, 2], ids=["one group", "groups with retrieval heads"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    heads = head_file(tmp_path_factory.mktemp("heads") / "tiny.heads.json") if request.param > 1 else "off"
    flags = {
        "block_size": BLOCK,
        "max_num_batched_tokens": 160,
        "num_gpu_blocks_override": 80,
        "disable_log_stats": False,
        "additional_config": {"thriftree": {"kv": {"heads": heads}}},
    }
    with engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 8, "adaptive": False}, **flags) as here:
        made, scheduler = Told(here), here.scheduler
        pool, manager, update = scheduler.kv_cache_manager.block_pool, scheduler._manager, scheduler.update_from_output
        take, free = pool.get_new_blocks, manager.free

        def taking(number: int) -> Any:
            made.allocated += number
            return take(number)

        def freeing(one: Any) -> None:
            blocks = manager.get_blocks(one.request_id).blocks
            made.held = sum(not block.is_null for group in blocks for block in group)
            free(one)

        def updating(*args: Any) -> Any:
            done = update(*args)
            made.outputs += [output for batch in done.values() for output in batch.outputs]
            return done

        pool.get_new_blocks, manager.free, scheduler.update_from_output = taking, freeing, updating
        yield made


@pytest.mark.parametrize("speculation", ["off", "auto"])
@pytest.mark.parametrize(
    "kv",
    [
        {"method": "streaming_llm", "budget": 96},
        {"method": "snapkv", "budget": 128},
        {"method": "observed", "keep": 0.25},
        {"method": "keydiff", "budget": 128, "per_head": True},
    ],
    ids=str,
)
def test_counts_are_the_pools(told: Told, kv: dict[str, Any], speculation: str) -> None:
    report = told.ask(kv, speculation)
    assert report.kv_blocks_freed == told.allocated - told.held > 0
    groups = len(told.running.scheduler.kv_cache_config.kv_cache_groups)
    assert report.kv_dropped == report.kv_blocks_freed // groups * BLOCK
    assert (report.kv_seen, report.kv_seen - report.kv_kept) == (SEEN, report.kv_dropped)
    assert not report.exact
    budget = kv.get("budget", LENGTH // 4)
    assert budget <= report.kv_kept < budget + 2 * BLOCK
    # The metric of a dashboard: what is held at the end, of all but the null block.
    assert told.usage[-1] == pytest.approx(told.held / 79, abs=(groups + 0.1) / 79)  # one step before
    assert told.usage[-1] < 0.6 * max(told.usage)


def test_retrieval_heads_cost_what_they_cost(told: Told) -> None:
    if told.running.runner.compression.retrieval is None:
        assert "razor_attention" in told.running.runner.compression.terms.missing
        return
    report = told.ask({"method": "razor_attention", "budget": 96})
    assert report.kv_blocks_freed == told.allocated - told.held > 0
    dropped = told.ask({"method": "streaming_llm", "budget": 96}).kv_dropped
    assert report.kv_dropped == round(0.75 * dropped / BLOCK) * BLOCK  # half of the layers keep one head of two


def test_a_whole_cache_is_told_as_such(told: Told) -> None:
    report = told.ask("off")
    assert (report.kv_seen, report.kv_blocks_freed, report.exact) == (0, 0, True)
    assert told.allocated == told.held and told.usage[-1] == max(told.usage)


@pytest.mark.parametrize(("length", "tokens"), [(60, 40), (LENGTH, 1)], ids=["within the budget", "the first token"])
def test_an_answer_from_a_whole_cache_is_exact(told: Told, length: int, tokens: int) -> None:
    """Nothing was dropped before the answer's last token was known."""
    report = told.ask({"method": "snapkv", "budget": 128}, tokens=tokens, length=length)
    assert (report.kv_dropped, report.kv_blocks_freed, report.exact) == (0, 0, True)
    assert not told.ask({"method": "snapkv", "budget": 128}, tokens=2).exact
