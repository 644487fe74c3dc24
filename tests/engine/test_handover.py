"""Requests that cannot be encoded for the engine's process."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreRequest

from thriftree.plugins.engine.handover import careful


def request(**params: Any) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id="one",
        prompt_token_ids=[1],
        mm_features=None,
        sampling_params=SamplingParams(**params),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


async def encode(request: EngineCoreRequest) -> None:
    msgspec.msgpack.encode(request, enc_hook=lambda value: None)


@pytest.mark.parametrize(
    ("params", "named"),
    [({"top_k": 2**70}, "top_k"), ({"stop": ["\ud800"]}, "stop"), ({"max_tokens": 2**64}, "max_tokens")],
)
async def test_they_are_forgotten_and_name_the_field(params: dict[str, Any], named: str) -> None:
    forgotten: list[str] = []

    async def forget(name: str) -> None:
        forgotten.append(name)

    with pytest.raises(VLLMValidationError) as caught:
        await careful(encode, forget)(request(**params))
    assert forgotten == ["one"]
    assert caught.value.parameter == named


async def test_others_pass_and_other_failures_stay_what_they_are() -> None:
    async def forget(name: str) -> None:
        raise AssertionError(name)

    async def dead(request: EngineCoreRequest) -> None:
        raise RuntimeError("the engine died")

    await careful(encode, forget)(request(top_k=3))
    with pytest.raises(RuntimeError, match="died"):
        await careful(dead, forget)(request())
