"""The vision model of the house through stock vLLM: it loads, and it answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from vllm import SamplingParams

from thriftree.zoo import shapes_vl
from thriftree.zoo.shapes_vl.items import Item, held_out

from ..engines import engine

pytestmark = pytest.mark.engine


def conversation(item: Item) -> list[Any]:
    parts = [{"type": "image_pil", "image_pil": item.image}, {"type": "text", "text": item.question}]
    return [{"role": "user", "content": parts}]


def test_stock_vllm_serves_it() -> None:
    items = held_out(280)
    with engine(str(shapes_vl.ensure()), max_model_len=512) as running:
        params = SamplingParams(temperature=0, max_tokens=8)
        outputs = running.llm.chat([conversation(item) for item in items], params, use_tqdm=False)
        said = [output.outputs[0].text for output in outputs]
        assert all(output.outputs[0].finish_reason == "stop" for output in outputs)
        assert {len(output.prompt_token_ids) for output in outputs} <= set(range(144 + 5, 144 + 30))
        turns = [*conversation(items[0]), {"role": "assistant", "content": said[0]}]
        turns += [{"role": "user", "content": f"Is there a {items[0].answer} cross?"}]
        assert running.llm.chat(turns, params, use_tqdm=False)[0].outputs[0].text in ("yes", "no")
    wrong = Counter(item.kind for item, answer in zip(items, said, strict=True) if not item.right(answer))
    assert wrong.total() <= 0.02 * len(items), wrong
