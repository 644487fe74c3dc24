"""The vision model of the house through stock vLLM: it loads, and it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vllm import SamplingParams

from thriftree.plugins.vision.profiles import PROFILES
from thriftree.zoo import shapes_vl
from thriftree.zoo.shapes_vl.items import Item, held_out

from ..engines import engine

pytestmark = pytest.mark.engine
DOCS = Path(__file__).parents[3] / "docs"
NINTH = {"method": "divprune", "keep": 0.11}


@pytest.fixture(scope="module")
def pruning() -> Iterator[Callable[[list[Item], Any], float]]:
    """Share of right answers under a setting."""
    flags = {"max_model_len": 512, "additional_config": {"thriftree": {"vision": {}}}}
    with engine(str(shapes_vl.ensure()), **flags) as running:

        def share(items: list[Item], vision: Any) -> float:
            outputs = running.llm.chat(
                [conversation(item) for item in items],
                SamplingParams(temperature=0, max_tokens=8),
                use_tqdm=False,
                mm_processor_kwargs={"thrift_vision": vision},
            )
            right = [item.right(output.outputs[0].text) for item, output in zip(items, outputs, strict=True)]
            return sum(right) / len(right)

        yield share


def conversation(item: Item) -> list[Any]:
    parts = [{"type": "image_pil", "image_pil": item.image}, {"type": "text", "text": item.question}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize(("profile", "share"), [("balanced", 0.98), ("max", 0.95)])
def test_profiles_keep_what_they_promise(pruning: Any, profile: str, share: float) -> None:
    """Of the right answers that the whole image gives; the same count of rows at random does not."""
    items = held_out(280, seed=5)
    asked = dict(PROFILES[profile].vision)
    whole, pruned, chance = (pruning(items, wish) for wish in ("off", asked, {**asked, "method": "random"}))
    assert whole >= 0.98
    assert pruned >= share * whole
    assert chance < 0.9 * whole


def test_what_the_readme_shows(pruning: Any) -> None:
    """The picture in docs/, its text, and that evenly spaced tokens miss it."""
    picture = Image.open(DOCS / "scene.png").convert("RGB")
    text = Item(picture, "What does the text say?", "K7T", "text", "many", 0)
    found = [pruning([text], wish) for wish in ("off", NINTH, {**NINTH, "method": "stride"})]
    assert found == [1.0, 1.0, 0.0]


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
