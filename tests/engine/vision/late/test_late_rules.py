"""Where late layers meet chunks, preemption, the whole prompt in a step, two ranks, and what a request may not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from thriftree.zoo import tiny_vision

from ...engines import Ask, engine
from ..conftest import CHUNKED
from ..reference import Reference
from ..scenarios import assert_equal, flags, two_ranks
from .conftest import DROP, FIFTH, MIXED, ROOM, WITHOUT_SCORES, asks_of, late_ask, late_engine, replies, watch
from .oracle import Oracle

pytestmark = pytest.mark.engine
#: Qwen3-VL's second layer still gets rows of the tower.
FAMILIES = [("llava", 1), ("qwen2.5-vl", 1), pytest.param("qwen3-vl", 2, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("family", "layer"), FAMILIES)
def test_chunks_cut_images(family: str, layer: int) -> None:
    """What needs no scores leaves in chunks of 48 tokens; some chunks are nothing but rows that leave."""
    path = str(tiny_vision.ensure(family))
    oracle = Oracle(Reference(path), layer)
    tokenizer = oracle.reference.processor.tokenizer
    without = asks_of(tokenizer, family, WITHOUT_SCORES)
    with late_engine(path, oracle, max_num_batched_tokens=48) as (running, picks):
        answers = running.run(without)
    assert_equal(answers, replies(oracle, picks, without), CHUNKED)


def beside(tokenizer: Any) -> list[Ask]:
    """A prompt that fits into a step alone, behind one that takes most of the step."""
    first = late_ask(tokenizer, "llava", "same_twice", None, DROP)
    return [first, late_ask(tokenizer, "llava", "middle", None, FIFTH)]


@pytest.mark.parametrize("chunked", [True, False])
def test_a_prompt_that_is_cut_for_others_sake(chunked: bool) -> None:
    """With chunked prefill it stays whole and is told so; without it waits for a step of its own."""
    path = str(tiny_vision.ensure("llava"))
    oracle = Oracle(Reference(path), 1)
    asks = beside(oracle.reference.processor.tokenizer)
    budget: dict[str, Any] = {"max_num_batched_tokens": 400, "max_model_len": 400, "enable_chunked_prefill": chunked}
    with late_engine(path, oracle, **budget) as (running, picks):
        told = watch(running)
        answers = running.run(asks)
    assert sorted((len(one.visual), one.stays) for one in told) == [(144, 144 if chunked else 29), (288, 1)]
    assert_equal(answers, replies(oracle, picks, asks, told))


def test_preempted_requests_come_back_the_same() -> None:
    """They compute their prompts anew, in one step or in several: what was decided at first holds."""
    path = str(tiny_vision.ensure("qwen2.5-vl"))
    oracle = Oracle(Reference(path), 2)
    batch = [(scene, vision, late, 0) for scene, vision, late, _ in MIXED]
    asks = asks_of(oracle.reference.processor.tokenizer, "qwen2.5-vl", batch)
    given = {"max_num_batched_tokens": 400, "max_model_len": 400, "num_gpu_blocks_override": 18}
    with late_engine(path, oracle, **given) as (running, picks):
        preempted: list[str] = []
        stock = running.scheduler._preempt_request

        def counted(request: Any, *given: Any, **more: Any) -> None:
            preempted.append(request.request_id)
            stock(request, *given, **more)

        running.scheduler._preempt_request, told = counted, watch(running)
        answers = running.run(asks)
    assert preempted and any(one.stays < len(one.visual) for one in told if one.late.method == "attention")
    assert_equal(answers, replies(oracle, picks, asks, told), CHUNKED)


@pytest.mark.two_cores
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_two_ranks(family: str) -> None:
    path = str(tiny_vision.ensure(family))
    oracle = Oracle(Reference(path), 2)
    asks = asks_of(oracle.reference.processor.tokenizer, family)
    with late_engine(path, oracle, **ROOM) as (running, picks):
        running.run(asks)
    options = {"thriftree": {"vision": {"late_layer": 2}}}
    with two_ranks(path, additional_config=options, enable_prefix_caching=False, **ROOM) as running:
        answers = running.run(asks)
    assert_equal(answers, replies(oracle, picks, asks), CHUNKED)


def test_what_a_stock_servers_client_may_not_have() -> None:
    path = str(tiny_vision.ensure("llava"))
    with late_engine(path, Oracle(Reference(path), 2), max_num_batched_tokens=160) as (running, _):
        tokenizer = running.llm.get_tokenizer()

        def answer(late: Any, vision: Any = None, scene: str = "middle", **more: Any) -> Any:
            asked = late_ask(tokenizer, "llava", scene, vision, late)
            return running.run([replace(asked, params=replaced(asked.params, **more))])[0]

        for late, said in (
            ({"keep": 2}, r"thriftree\.late\.keep: must be a share"),
            ({"keep": 0.5, "method": "drop"}, r"thriftree\.late\.method: drop keeps none"),
            ({"keep": 0.5, "method": "best"}, r"thriftree\.late\.method: must be one of drop, attention"),
            ({"layer": 3}, r"thriftree\.late\.layer: unknown"),
            (7, r'thriftree\.late: must be "off" or an object'),
            (FIFTH, r"thriftree\.late\.method: attention needs the whole prompt .* are above this server's 160"),
        ):
            with pytest.raises(VLLMValidationError, match=said):
                answer(late)
        with pytest.raises(VLLMValidationError, match=r"thrift_vision\.late: it is said in vllm_xargs"):
            answer(None, {"keep": 0.5, "late": DROP})
        told = watch(running)
        answer(DROP, prompt_logprobs=1)
        assert [one.stays for one in told] == [144], "hidden states of all rows are wanted"
        answer(FIFTH, scene="no_image")
        assert len(told) == 1
    asked = late_ask(tokenizer, "llava", "middle", None, DROP)
    said = r"thriftree\.late: this server was started without it"
    with (
        engine(path, **flags(additional_config={"thriftree": {"vision": {}}})) as running,
        pytest.raises(VLLMValidationError, match=said),
    ):
        running.run([asked])


def replaced(params: Any, **more: Any) -> Any:
    made = params.clone()
    for name, value in more.items():
        setattr(made, name, value)
    return made
