"""Caps and refusals on a real engine, token trees with pruned images, and the gateway's client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError

from thriftree.plugins.engine.async_llm import ThriftAsyncLLM
from thriftree.plugins.engine.contract_var import CURRENT, RequestContract
from thriftree.zoo import tiny_vision

from ..engines import engine
from .conftest import CHUNKED, QUARTER
from .pruned import OPTIONS, expected, pruning, wish
from .reference import Reference
from .scenarios import SCENES, Scene, assert_equal, flags, ids_of

pytestmark = pytest.mark.engine


def capped(**options: Any) -> dict[str, Any]:
    return flags(max_num_batched_tokens=64, additional_config={"thriftree": {"vision": options}})


@pytest.mark.parametrize("trees", [None, {"max_nodes": 8, "adaptive": False}])
def test_a_cap_holds_for_everybody(trees: dict[str, Any] | None) -> None:
    """The encoder's cache has room for a quarter of an image, and nobody gets in with more."""
    path = str(tiny_vision.ensure("llava"))
    with engine(path, trees, **capped(max_keep=0.25, method="stride")) as running:
        tokenizer = running.llm.get_tokenizer()

        def answer(vision: Any, scene: str | Scene = "middle") -> Any:
            return running.run([wish(tokenizer, "llava", scene, vision)])[0]

        length = len(wish(tokenizer, "llava", "middle", None).prompt) - 1
        assert running.scheduler.encoder_cache_manager.cache_size == 64 < 144
        assert answer(None).prompt_tokens == length + 36, "who says nothing gets what there is room for"
        for vision, said in (
            ("off", r"thrift_vision: this server keeps at most 0\.25"),
            ({"keep": 0.5}, r"thrift_vision\.keep: 0\.5 is above this server's cap of 0\.25"),
            ({"keep_tokens": 37}, r"thrift_vision\.keep_tokens: 37 of this image's 144 tokens is above .* cap of 36"),
            ({"keep_tokens": 145}, r"thrift_vision\.keep_tokens: 145 is more than the 144 of an image"),
            ({"keep": 0}, r"thrift_vision\.keep: "),
            ({"keep": 0.2, "keep_tokens": 3}, r"thrift_vision\.keep_tokens: "),
            ({"method": "best"}, r"thrift_vision\.method: unknown method 'best'"),
            ({"method": "stride", "steps": 3}, r"thrift_vision\.steps"),
            ("everything", r"thrift_vision: must be"),
        ):
            with pytest.raises(VLLMValidationError, match=said):
                answer(vision)
        for scene in ("only", Scene("<|im_start|>user\n*<|im_end|>\n<|im_start|>assistant\n")):
            with pytest.raises(VLLMValidationError, match=r"thrift_vision\.method: it goes by the question"):
                answer({"method": "recoverable"}, scene)
        assert answer({"keep_tokens": 36}).prompt_tokens == length + 36
        assert answer({"keep": 0.1}).prompt_tokens == length + 14


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_trees_give_the_same_tokens(family: str) -> None:
    path = str(tiny_vision.ensure(family))
    reference = Reference(path)
    tokenizer = reference.processor.tokenizer
    settings: tuple[Any, ...] = (None, QUARTER, {"method": "divprune", "keep": 0.1}, {"method": "tome", "keep": 0.3})
    scenes = ("middle", "two", "first", "last")
    pairs = zip(scenes, settings, strict=True)
    asks = [wish(tokenizer, family, scene, vision, 32, step) for step, (scene, vision) in enumerate(pairs)]
    with pruning(path, {"max_nodes": 8, "adaptive": False}, max_num_batched_tokens=64) as (running, picks):
        answers = running.run(asks)
        stats = running.runner.proposer.stats()
    assert stats["drafted"] > 0 and stats["accepted"] > 0, stats
    assert_equal(answers, [expected(reference, picks, one) for one in asks], CHUNKED)


def test_the_gateways_client_carries_the_contract() -> None:
    """Counts of every image come back, from the processor's cache too, and requests at once do not mix."""
    path = str(tiny_vision.ensure("llava"))
    arguments = AsyncEngineArgs(path, dtype="float32", enforce_eager=True, **flags(additional_config=OPTIONS))

    async def ask(client: ThriftAsyncLLM, name: str, vision: Any, most: int = 288) -> tuple[int, RequestContract]:
        contract = RequestContract({"vision": vision}, max_visual_tokens=most)
        CURRENT.set(contract)
        scene = SCENES["two"]
        prompt: Any = {
            "prompt_token_ids": ids_of(client.get_tokenizer(), "llava", scene.text),
            "multi_modal_data": {"image": scene.images},
            "mm_processor_kwargs": {"thrift_vision": {"method": "random", "keep_tokens": 1}},  # a client's own: ignored
        }
        (rendered,) = await client.renderer.render_cmpl_async([prompt])
        async for output in client.generate(rendered, SamplingParams(max_tokens=2), name):
            length = len(output.prompt_token_ids or ())
        return length, contract

    async def play() -> list[tuple[int, RequestContract]]:
        client = ThriftAsyncLLM.from_vllm_config(arguments.create_engine_config())
        try:
            wishes: list[Any] = ["off", QUARTER, {"method": "divprune", "keep_tokens": 10}, QUARTER]
            tasks = [asyncio.create_task(ask(client, f"r{i}", vision)) for i, vision in enumerate(wishes)]
            with pytest.raises(VLLMValidationError, match=r"thrift\.vision: 72 visual tokens are above .* cap of 71"):
                await ask(client, "over", QUARTER, 71)
            return [*await asyncio.gather(*tasks), await ask(client, "again", QUARTER, 72)]
        finally:
            client.shutdown()

    answers = asyncio.run(play())
    lengths = [length for length, _ in answers]
    assert [lengths[0] - one for one in lengths] == [0, 216, 268, 216, 216]
    reports = [contract.report for _, contract in answers]
    assert [one.vision_seen for one in reports] == [288] * 5
    assert [one.vision_kept for one in reports] == [288, 72, 20, 72, 72]
    assert [one.vision_method for one in reports] == [None, "random", "divprune", "random", "random"]
    assert [one.exact for one in reports] == [True, False, False, False, False]
    assert [one.prompt_tokens for one in reports] == lengths
