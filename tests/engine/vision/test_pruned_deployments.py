"""Pruned images on two ranks and under the compiler, and videos, which nobody prunes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vllm import LLM, SamplingParams

from thriftree.plugins.engine.vision.wish import WISH
from thriftree.zoo import tiny_vision

from ..engines import Engine, engine
from .conftest import CHUNKED, QUARTER, mixed, stock_models
from .images import picture
from .pruned import OPTIONS, expected, pruning
from .reference import Reference
from .scenarios import assert_equal, flags, ids_of, params, two_ranks

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.mark.two_cores
@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_two_ranks_pick_the_rows_of_one(family: str) -> None:
    """Which rows they are is seen in the answers: the reference gets those that one rank picks."""
    path = str(tiny_vision.ensure(family))
    reference = Reference(path)
    asks = mixed(reference.processor.tokenizer, family)
    with pruning(path, max_num_batched_tokens=48, max_num_seqs=8) as (running, picks):
        running.run(asks)
    with two_ranks(path, additional_config=OPTIONS, max_num_batched_tokens=48, max_num_seqs=8) as running:
        answers = running.run(asks)
    assert_equal(answers, [expected(reference, picks, one) for one in asks], CHUNKED)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "qwen3-vl"])
def test_compiled(family: str) -> None:
    path = str(tiny_vision.ensure(family))
    reference = Reference(path)
    asks = mixed(reference.processor.tokenizer, family)
    with pruning(path, enforce_eager=False, max_num_batched_tokens=48, max_num_seqs=8) as (running, picks):
        answers = running.run(asks)
    assert_equal(answers, [expected(reference, picks, one) for one in asks], CHUNKED)


@pytest.mark.parametrize("family", ["qwen2.5-vl"])
def test_preempted_requests_come_back(family: str) -> None:
    """Too few blocks for all: requests lose theirs and compute their prompts again, when others' images are cached."""
    path = str(tiny_vision.ensure(family))
    reference = Reference(path)
    asks = [replace(one, params=params(40)) for one in mixed(reference.processor.tokenizer, family)]
    given = {"max_num_batched_tokens": 48, "max_num_seqs": 8, "num_gpu_blocks_override": 14, "max_model_len": 400}
    with pruning(path, **given) as (running, picks):
        preempted: list[str] = []
        stock = running.scheduler._preempt_request

        def counted(request: Any, *given: Any, **more: Any) -> None:
            preempted.append(request.request_id)
            stock(request, *given, **more)

        running.scheduler._preempt_request = counted
        answers = running.run(asks)
    assert preempted
    assert_equal(answers, [expected(reference, picks, one) for one in asks], CHUNKED)


def film(seed: int) -> Any:
    frames = [np.asarray(picture(seed + i, 112, 112)) for i in range(4)]
    return np.stack(frames), {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}


def shown(llm: LLM, vision: Any) -> list[tuple[tuple[int, ...], list[dict[int, float]]]]:
    """A film, and a film after a picture that loses rows (or none)."""
    tokenizer = llm.get_tokenizer()
    words = "<|vision_start|><|video_pad|><|vision_end|> what happens?"
    film_alone: Any = {
        "prompt_token_ids": tokenizer.encode(words, add_special_tokens=False),
        "multi_modal_data": {"video": [film(1)]},
    }
    both: Any = {
        "prompt_token_ids": [*ids_of(tokenizer, "qwen2.5-vl", "See * and "), *film_alone["prompt_token_ids"]],
        "multi_modal_data": {"video": [film(9)], "image": [picture(4)]},
    }
    if vision is not None:
        both["mm_processor_kwargs"] = {WISH: vision}
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=3, ignore_eos=True)
    outs = [out.outputs[0] for out in llm.generate([film_alone, both], params, use_tqdm=False)]
    return [
        (tuple(out.token_ids), [{t: e.logprob for t, e in step.items()} for step in out.logprobs or ()]) for out in outs
    ]


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_videos_are_stock_vllms(family: str) -> None:
    path = str(tiny_vision.ensure(family))
    given = replaced_limit(flags())

    def play(running: Engine, vision: Any) -> Any:
        return shown(running.llm, vision)

    with stock_models(), engine(path, **given) as running:
        stock = play(running, None)
    with engine(path, **given, additional_config=OPTIONS) as running:
        assert play(running, None) == stock
        pruned = play(running, QUARTER)
    assert pruned[0] == stock[0] and pruned[1] != stock[1]


def replaced_limit(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "limit_mm_per_prompt": {"image": 1, "video": 1}}
