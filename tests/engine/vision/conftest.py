"""One stock engine and one of ours for each family; the tests look at what they answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from vllm.model_executor.model_loader.utils import _MODEL_ARCH_BY_HASH
from vllm.model_executor.models.registry import ModelRegistry
from vllm.plugins import load_general_plugins

from thriftree.plugins.engine.vision import families, model
from thriftree.plugins.engine.vision.architectures import FAMILIES
from thriftree.plugins.engine.vision.support import tower_of
from thriftree.zoo import tiny_vision

from ..engines import Answer, Ask, engine
from . import scenarios
from .pruned import Picks, pruning, wish
from .reference import Reference

#: Chunks of 48 tokens: stock vLLM itself is up to 2e-5 from transformers in these models, whose logits reach 20.
CHUNKED = 2 * scenarios.TOLERANCE
Answers = list[Answer | None]
QUARTER = {"method": "random", "keep": 0.25}
WHOLE = ("middle", "two", "large", "no_image", "last")
#: Scene, settings, step at which the request comes. They share steps, and chunks of 48 tokens cut images.
MIXED: tuple[tuple[str, Any, int], ...] = (
    ("middle", QUARTER, 0),
    ("middle", {"method": "divprune", "keep_tokens": 11}, 0),
    ("middle", None, 0),
    ("middle", {"method": "stride", "keep": 1.0}, 1),
    ("two", {"method": "divprune", "keep": 0.33}, 0),
    ("same_twice", {"method": "hiprune", "keep": 0.5}, 1),
    ("two_touch", {"method": "tome", "keep": 0.4}, 1),
    ("large", {"method": "visionzip", "keep": 0.11}, 2),
    ("no_image", None, 2),
    ("last", {"method": "recoverable", "keep": 0.5}, 2),
    ("first", {"method": "random", "keep_tokens": 1}, 3),
    ("system", {"method": "avgpool", "keep": 0.25}, 3),
)
#: After all these: a prefix hit behind the image, the same picture under other settings, and under another question.
LATER: tuple[tuple[str, Any, int], ...] = (
    ("middle", QUARTER, 0),
    ("middle", {"method": "divprune", "keep": 0.1}, 0),
    ("middle", {"method": "recoverable", "keep": 0.5}, 0),
)


def mixed(tokenizer: Any, family: str, batch: tuple[tuple[str, Any, int], ...] = MIXED) -> list[Ask]:
    return [wish(tokenizer, family, scene, vision, arrives=step) for scene, vision, step in batch]


@dataclass
class Played:
    """What the engines of a family answered."""

    family: str
    reference: Reference
    stock: list[Answers] = field(default_factory=list)  # the same requests twice: without and with cached prefixes
    plain: list[Answers] = field(default_factory=list)  # ours: nothing said, then a share of 1
    mixed: Answers = field(default_factory=list)
    later: Answers = field(default_factory=list)
    broken: Answers = field(default_factory=list)  # `mixed` with positions that nobody corrects
    picks: Picks = field(default_factory=Picks)
    towers: tuple[Any, Any] = (None, None)  # as the front end and as the engine sees it

    @property
    def tokenizer(self) -> Any:
        return self.reference.processor.tokenizer


@contextmanager
def stock_models() -> Iterator[None]:
    """vLLM's own classes, as if our package were not there."""
    load_general_plugins()
    for name, family in FAMILIES.items():
        ModelRegistry.register_model(name, f"vllm.model_executor.models.{family.module}:{name}")
    _MODEL_ARCH_BY_HASH.clear()  # vLLM remembers a model's class for the process
    try:
        yield
    finally:
        families.register()
        _MODEL_ARCH_BY_HASH.clear()


def play(family: str) -> Played:
    path = str(tiny_vision.ensure(family))
    played = Played(family, Reference(path))
    tight = {"max_num_batched_tokens": 48, "max_num_seqs": 8}
    one = {"method": "divprune", "keep": 1.0}
    plain = [wish(played.tokenizer, family, scene, None) for scene in WHOLE]
    whole = [wish(played.tokenizer, family, scene, one) for scene in WHOLE]
    with stock_models(), engine(path, **scenarios.flags(**tight)) as running:
        assert "thriftree" not in type(running.runner.model).__module__
        played.stock = [running.run(plain), running.run(plain)]
    with pruning(path, **tight) as (running, played.picks):
        runner = running.runner
        played.towers = tower_of(runner.model_config.hf_config), runner.model._selector.tap.tower
        played.plain = [running.run(plain), running.run(whole)]
        asks = mixed(played.tokenizer, family)
        played.mixed = running.run(asks)
        played.later = running.run(mixed(played.tokenizer, family, LATER))
        if played.reference.mrope:
            running.llm.reset_prefix_cache()
            with pytest.MonkeyPatch.context() as patch:
                strip = model.strip
                patch.setattr(model, "strip", lambda *given: (strip(*given)[0], None))
                played.broken = running.run(asks)
    return played


#: Nothing but the tower differs from Qwen2.5-VL.
SLOW = ("qwen2-vl",)
PARAMS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in scenarios.FAMILIES]


@pytest.fixture(scope="module", params=PARAMS)
def played(request: pytest.FixtureRequest) -> Played:
    return play(request.param)
