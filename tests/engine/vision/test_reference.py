"""Before anything is pruned: stock vLLM and the reference agree on the tiny models, with one image and with two."""

from __future__ import annotations

import time

import pytest

from thriftree.zoo import tiny_vision

from ..engines import engine
from . import scenarios
from .reference import Reference
from .scenarios import SCENES, ask, assert_equal, expect, lay_out

pytestmark = pytest.mark.engine


#: `test_pruned` asks the same of all families, pruned; here one shows that the reference is right about what is not.
FAMILIES = [pytest.param(name, marks=() if name == "llava" else pytest.mark.slow) for name in scenarios.FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_vllm_equals_transformers(family: str) -> None:
    path = str(tiny_vision.ensure(family))
    reference = Reference(path)
    asks = [ask(reference.processor.tokenizer, family, scene) for scene in SCENES.values()]
    begun = time.monotonic()
    with engine(path, **scenarios.flags()) as stock:
        print(f"{family}: {time.monotonic() - begun:.1f} s to start")
        answers = stock.run(asks)
    assert [a.prompt_tokens for a in answers if a is not None] == [len(lay_out(reference, a)) for a in asks]
    assert_equal(answers, [expect(reference, a) for a in asks])


@pytest.mark.two_cores
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_two_ranks_of_stock_vllm_equal_transformers(family: str) -> None:
    path = str(tiny_vision.ensure(family))
    reference = Reference(path)
    asks = [ask(reference.processor.tokenizer, family, SCENES[name]) for name in ("middle", "two")]
    with scenarios.two_ranks(path) as stock:
        answers = stock.run(asks)
    assert_equal(answers, [expect(reference, a) for a in asks])
