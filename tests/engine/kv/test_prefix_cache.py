"""Prefix cache: what compressed requests publish is what anybody would have computed, and what they take is only read.

An engine without a prefix cache answers every request alone; one with it is then asked in every order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.v1.core.kv_cache_utils import get_block_hash, get_group_id

from thriftree.plugins.engine.kv.plan import Plan
from thriftree.plugins.kv_cache import registry
from thriftree.zoo import tiny

from ..engines import Answer, Ask, Engine, assert_same, engine
from .replay import asking, head_file, prompts

pytestmark = pytest.mark.engine
NOISE = 1e-3
LENGTH, BUDGET, BLOCK, CHUNK, TOKENS = 400, 128, 32, 160, 40
SHARED = (LENGTH - BUDGET) // BLOCK * BLOCK  # what a compressed request never rewrites
WHOLE = LENGTH // BLOCK * BLOCK
RULES: list[dict[str, Any]] = [
    {"method": "streaming_llm", "defer": True},
    {"method": "snapkv"},
    {"method": "observed"},
    {"method": "knorm", "defer": False},
    {"method": "keydiff", "per_head": True},
    {"method": "razor_attention", "defer": True},
]
WITH = {1: RULES[:4], 4: [RULES[1], *RULES[4:]]}  # number of KV cache groups -> what is asked there
OTHER = {"whole": "compressed", "compressed": "whole"}
GROUPS = {1: "one group", 4: "four groups"}
TEXTS = prompts(*[LENGTH] * len(RULES), seed=77)


def named(rule: dict[str, Any]) -> str:
    return "-".join(map(str, rule.values()))


PAIRS = pytest.mark.parametrize(
    ("cached", "rule"),
    [pytest.param(groups, rule, id=f"{GROUPS[groups]}, {named(rule)}") for groups in WITH for rule in WITH[groups]],
    indirect=["cached"],
    scope="module",
)


def ask(rule: dict[str, Any], kind: str, arrives: int = 0) -> Ask:
    kv = "off" if kind == "whole" else {**rule, "budget": BUDGET}
    return Ask(TEXTS[RULES.index(rule)], asking(kv, tokens=TOKENS), arrives)


def defers(rule: dict[str, Any]) -> bool:
    return bool(rule.get("defer", registry.describe(rule["method"]).defer))


def shared(rule: dict[str, Any]) -> int:
    """Tokens that a compressed request gives and takes; with one of two heads whole, a layer gives half as much."""
    method = registry.describe(rule["method"])
    if method.observes or not defers(rule):
        return 0
    return SHARED // 2 if method.retrieval else SHARED


def contents(running: Engine, group: int, block: int) -> Tensor:
    """Keys and values of a block in all layers of its group."""
    layers = running.runner._layers()[group]
    return torch.stack([cache[block] for cache in (*layers.keys, *layers.values)])


Key = tuple[int, tuple[int, ...]]  # group, and the tokens up to a block's end


@dataclass
class Cached:
    """An engine with a prefix cache, and what it should say and hold."""

    running: Engine
    expected: dict[tuple[str, str], Answer | None]
    blocks: dict[Key, Tensor]
    hits: list[int] = field(default_factory=list)  # tokens from the cache, of each request admitted
    requests: list[Any] = field(default_factory=list)

    def ask(self, *asks: Ask) -> list[Answer | None]:
        return self.running.run(asks)

    def clear(self) -> None:
        assert self.running.engine.reset_prefix_cache()
        self.hits.clear()
        self.requests.clear()

    def published(self) -> dict[Key, Tensor]:
        """All blocks in the prefix cache."""
        tokens: dict[bytes, tuple[int, ...]] = {}
        for request in self.requests:
            for i, name in enumerate(request.block_hashes):
                tokens[name] = tuple(request.all_token_ids[: (i + 1) * BLOCK])
        found = {}
        for block in self.running.scheduler.kv_cache_manager.block_pool.blocks:
            if block.block_hash is not None:
                group = get_group_id(block.block_hash)
                key = (group, tokens[get_block_hash(block.block_hash)])
                found[key] = contents(self.running, group, block.block_id)
        return found


def flags(path: Path, groups: int, **more: Any) -> dict[str, Any]:
    """`groups` 1: all layers alike; 4: two tiers, in each a layer with a retrieval head."""
    kv = {"tiers": 2, "heads": head_file(path / "tiny.heads.json")} if groups > 1 else {}
    config = {"thriftree": {"kv": kv}}
    return {"block_size": BLOCK, "max_num_batched_tokens": CHUNK, "additional_config": config, **more}


def alone(plain: Engine, rules: list[dict[str, Any]]) -> tuple[dict[tuple[str, str], Answer | None], dict[Key, Tensor]]:
    """Answers, and the blocks of the requests that keep their caches."""
    answers: dict[tuple[str, str], Answer | None] = {}
    blocks: dict[Key, Tensor] = {}

    def note() -> None:
        for request in plain.scheduler.running:
            full = request.num_computed_tokens // BLOCK
            for group, ids in enumerate(plain.scheduler.kv_cache_manager.get_block_ids(request.request_id)):
                for i, block in enumerate(ids[:full]):
                    key = (group, tuple(request.all_token_ids[: (i + 1) * BLOCK]))
                    if key not in blocks:
                        blocks[key] = contents(plain, group, block)

    for rule in rules:
        answers[named(rule), "whole"] = plain.run([ask(rule, "whole")], note)[0]
        answers[named(rule), "compressed"] = plain.run([ask(rule, "compressed")])[0]
    return answers, blocks


@pytest.fixture(scope="module")
def cached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cached]:
    path, groups, model = tmp_path_factory.mktemp("heads"), request.param, str(tiny.ensure("llama-gqa"))
    with engine(model, **flags(path, groups, enable_prefix_caching=False)) as plain:
        expected, blocks = alone(plain, WITH[groups])
    with engine(model, **flags(path, groups, enable_prefix_caching=True)) as running:
        assert len(running.scheduler.kv_cache_config.kv_cache_groups) == groups
        made = Cached(running, expected, blocks)
        scheduler = running.scheduler
        lookup, add = scheduler.kv_cache_manager.get_computed_blocks, scheduler.add_request

        def noting(one: Any) -> Any:
            found = lookup(one)
            made.hits.append(found[1])
            return found

        scheduler.kv_cache_manager.get_computed_blocks = noting
        scheduler.add_request = lambda one: (made.requests.append(one), add(one))[1]
        yield made


@pytest.mark.parametrize("first", ["compressed", "whole"])
@PAIRS
def test_one_after_the_other(cached: Cached, rule: dict[str, Any], first: str) -> None:
    cached.clear()
    kinds = (first, OTHER[first], first)  # the first one again, so that it finds what both have left
    answers = [cached.ask(ask(rule, kind))[0] for kind in kinds]
    assert cached.hits == [0, shared(rule), WHOLE if first == "whole" else shared(rule)]
    assert_same([cached.expected[named(rule), kind] for kind in kinds], answers, NOISE)
    _assert_clean(cached)


@pytest.mark.parametrize("first", ["compressed", "whole"])
@PAIRS
def test_at_once(cached: Cached, rule: dict[str, Any], first: str) -> None:
    """The second comes while the first computes its prompt (compressed) or holds all of it (whole)."""
    cached.clear()
    kinds = [first, OTHER[first]]
    answers = cached.ask(ask(rule, kinds[0]), ask(rule, kinds[1], arrives=2 if first == "compressed" else 8))
    assert cached.hits == [0, shared(rule)]
    if not defers(rule):  # what it keeps depends on its chunks, and so on who else is there
        answers, kinds = [answers[kinds.index("whole")]], ["whole"]
    assert_same([cached.expected[named(rule), kind] for kind in kinds], answers, NOISE)
    _assert_clean(cached)


@pytest.mark.parametrize("cached", WITH, indirect=True, ids=GROUPS.values(), scope="module")
def test_the_trap(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that published rewritten blocks would be seen: by its answers, and by its cache."""
    rule = RULES[1]  # on either engine
    cached.clear()
    monkeypatch.setattr(Plan, "publishable", lambda plan, tiers: plan.prompt // BLOCK * BLOCK)
    cached.ask(ask(rule, "compressed"))
    with pytest.raises(AssertionError, match="rewritten"):
        _assert_clean(cached)
    whole = cached.ask(ask(rule, "whole"))[0]
    expected = cached.expected[named(rule), "whole"]
    assert cached.hits == [0, WHOLE] and whole is not None and expected is not None
    assert whole.tokens != expected.tokens


def _assert_clean(cached: Cached) -> None:
    """What is in the prefix cache is what a request that keeps its cache writes there, up to rounding."""
    published = cached.published()
    known = published.keys() & cached.blocks.keys()
    assert len(known) >= (WHOLE if len(cached.requests) > 1 else SHARED) // BLOCK
    rewritten = [len(key[1]) for key in known if not torch.allclose(published[key], cached.blocks[key], atol=1e-4)]
    assert not rewritten, f"rewritten blocks were published, those that end at {sorted(rewritten)}"
    answers = [key for key in published.keys() - known if len(key[1]) <= LENGTH]
    assert not answers, "a block of the prompt that no plain request has"
