"""Pruned images and compressed caches in one request: what is left of both is what plain torch has on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.exceptions import VLLMValidationError

from thriftree.zoo import tiny_vision

from ..engines import Answer, Ask, Engine, assert_same, engine
from ..kv.replay import Laid, Recorder, asking, replay
from .pruned import Picks, laid_out, watched, wish
from .reference import Reference
from .scenarios import Scene, assert_bitwise, flags

pytestmark = pytest.mark.engine
NOISE = 1e-3
BLOCK, TOKENS, BUDGET = 32, 60, 64
TREES = {"max_nodes": 8, "adaptive": False}
WORDS = "and many words with it, so that a request outgrows its budget and blocks are given up long before it ends."
SCENES = {
    "first": Scene(f"* a picture {WORDS} What do you see in it?", seed=21),
    "two": Scene(f"One * and another * {WORDS} Which?", ((168, 168), (320, 120)), seed=23),
    "last": Scene(f"{WORDS} What is this? *", seed=25),
    "none": Scene(f"No picture at all, {WORDS}", ()),
}
QUARTER, HALF = {"method": "divprune", "keep": 0.25}, {"method": "tome", "keep": 0.5}
RULES: list[dict[str, Any]] = [
    {"method": "snapkv"},
    {"method": "observed"},
    {"method": "knorm", "defer": False},
    {"method": "keydiff", "per_head": True},
    {"method": "expected_attention"},
    {"method": "recycled_attention"},
]


@dataclass
class Both:
    """An engine that prunes and compresses."""

    family: str
    running: Engine
    picks: Picks
    reference: Reference

    def ask(self, scene: str, vision: Any, kv: Any, arrives: int = 0, speculation: str = "auto") -> Ask:
        made = wish(self.reference.processor.tokenizer, self.family, SCENES[scene], vision, TOKENS, arrives)
        return replace(made, params=asking(kv, speculation, TOKENS))

    def alone(self, *asks: Ask) -> list[Answer | None]:
        """One after the other, none with anything of another in the prefix cache."""
        return [self.afresh(replace(one, arrives=0))[0] for one in asks]

    def afresh(self, *asks: Ask) -> list[Answer | None]:
        assert self.running.engine.reset_prefix_cache()
        return self.running.run(asks)

    def laid(self, ask: Ask, answered: int) -> Laid:
        """What the model reads of this request: pruned rows, and where M-RoPE has them."""
        prompt = laid_out(self.reference, self.picks, ask)
        if not self.reference.mrope:
            return Laid(prompt.embeds)
        after = torch.arange(prompt.next, prompt.next + answered).expand(3, -1)
        text = self.reference.model.config.get_text_config()
        axes = torch.arange(3).repeat_interleave(torch.tensor(text.rope_parameters["mrope_section"]))
        frequencies = self.reference.model.model.language_model.rotary_emb.inv_freq.float()
        angles = torch.cat((prompt.positions, after), 1)[axes].T * frequencies  # [places, pairs of channels]

        def rotate(x: Tensor, at: Tensor) -> Tensor:
            a, b = x.chunk(2, -1)
            cos, sin = angles[at].cos(), angles[at].sin()
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        return Laid(prompt.embeds, rotate)

    def check(self, asks: Sequence[Ask], answers: Sequence[Answer | None], recorder: Recorder, first: int) -> None:
        """Every request is what torch answers on the schedule that it had."""
        for number, (one, answer) in enumerate(zip(asks, answers, strict=True)):
            assert answer is not None
            laid = self.laid(one, TOKENS)
            assert answer.prompt_tokens == len(laid.rows)
            given = (self.reference.model, self.running, recorder.of(first + number), one, answer)
            worst, flips = replay(*given, laid=laid)
            assert worst < NOISE and flips <= 8, (number, worst, flips)
            if one.params.extra_args["thriftree"]["kv"] != "off":
                assert replay(*given, evicts=False, laid=laid)[0] > 100 * NOISE, f"{number}: nothing was dropped"


@pytest.fixture(
    scope="module",
    params=[("llava", None), ("llava", TREES), ("qwen2.5-vl", TREES)],
    ids=["llava", "llava, trees", "qwen2.5-vl, trees"],
)
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    family, trees = request.param
    path = str(tiny_vision.ensure(family))
    config = {"thriftree": {"vision": {}, "kv": {"compression": "on"}}}
    with watched() as picks, engine(path, trees, **flags(max_num_batched_tokens=64, additional_config=config)) as here:
        yield Both(family, here, picks, Reference(path))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_equals_torch_on_the_pruned_rows(both: Both, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kv = {**rule, "budget": BUDGET, "sinks": 4, "recent": 8}
    asks = [both.ask("first", QUARTER, kv), both.ask("two", HALF, kv, 1), both.ask("last", QUARTER, kv, 2)]
    if both.reference.mrope and rule["method"] == "expected_attention":
        with pytest.raises(VLLMValidationError, match=r"thriftree\.kv\.method: .* plain rotary positions"):
            both.running.run(asks)
        return
    pool = both.running.scheduler.kv_cache_manager.block_pool
    before, first = pool.get_num_free_blocks(), both.running._serial
    recorder = Recorder(both.running, monkeypatch)
    answers = both.afresh(*asks)
    both.check(asks, answers, recorder, first)
    both.running.settle()
    assert pool.get_num_free_blocks() == before and not both.running.runner._caches


def test_a_budget_that_nobody_exceeds_changes_no_bit(both: Both) -> None:
    """Neither one that is never reached, nor one that is reached so late that no block is given up."""
    scenes = (("first", QUARTER), ("two", HALF))
    plain = [both.ask(*scene, "off", speculation="off") for scene in scenes]  # drafts alter rounding
    expected = both.afresh(*plain)
    for spare in (BLOCK // 2, -4096):
        asks = []
        for scene, answer in zip(scenes, expected, strict=True):
            assert answer is not None
            kv = {"method": "snapkv", "budget": answer.prompt_tokens + TOKENS - spare}
            asks.append(both.ask(*scene, kv, speculation="off"))
        assert_bitwise(expected, both.afresh(*asks))


def test_neighbours_do_not_matter(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned, compressed, both and neither share steps: each is what it is alone, and what torch has."""
    kv = {"method": "snapkv", "budget": BUDGET, "sinks": 4, "recent": 8}
    asks = [
        both.ask("first", QUARTER, "off"),
        both.ask("two", None, kv),
        both.ask("two", HALF, kv, 1),
        both.ask("first", None, "off", 1),
        both.ask("none", None, kv, 2),
        both.ask("first", {"method": "hiprune", "keep": 0.25}, kv, 2),
        both.ask("none", None, "off", 3),
    ]
    alone = both.alone(*asks)
    pool = both.running.scheduler.kv_cache_manager.block_pool
    before, first = pool.get_num_free_blocks(), both.running._serial
    recorder = Recorder(both.running, monkeypatch)
    together = both.afresh(*asks)
    assert_same(alone, together, NOISE)
    both.check(asks, together, recorder, first)
    both.running.settle()
    assert pool.get_num_free_blocks() == before and not both.running.runner._caches


def test_a_prefix_behind_a_pruned_image(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take and give what lies before the window, which is more than the image; other settings share nothing."""
    kv = {"method": "snapkv", "budget": BUDGET, "sinks": 4, "recent": 8}
    whole, pruned = both.ask("first", QUARTER, "off"), both.ask("first", QUARTER, kv)
    other = both.ask("first", {**QUARTER, "keep": 0.3}, kv)
    (cold,) = both.afresh(pruned)
    prompt = len(both.laid(pruned, TOKENS).rows)
    shared = (prompt - BUDGET) // BLOCK * BLOCK
    image = prompt - len(pruned.prompt) + 1
    assert shared > image + BLOCK
    first = both.running._serial
    recorder = Recorder(both.running, monkeypatch)
    asks = [pruned, whole, pruned, other, whole]
    answers = [both.running.run([one])[0] for one in asks]
    assert [one.cached_tokens for one in answers if one] == [shared, shared, shared, 0, prompt // BLOCK * BLOCK]
    assert_same([cold, cold], [answers[0], answers[2]], NOISE)
    both.check(asks, answers, recorder, first)
