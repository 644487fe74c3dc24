"""A request's settings reach its images from the task that serves it, and from nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from thriftree.plugins.engine.contract_var import CURRENT, RequestContract
from thriftree.plugins.engine.handover import careful
from thriftree.plugins.engine.vision.wish import WISH, Pruned, Wish, carry

QUARTER = {"method": "divprune", "keep": 0.25}


def renderer() -> Any:
    """What vLLM's has: a coroutine that processes images in another thread."""
    pool = ThreadPoolExecutor(max_workers=1)

    def process(prompt: list[int], mm_processor_kwargs: Any) -> Any:
        wish = (mm_processor_kwargs or {}).get(WISH)
        if isinstance(wish, Wish) and wish.vision != "off":
            wish.images += [Pruned(100, 25, "divprune"), Pruned(8, 8, None)]
        return {"given": mm_processor_kwargs, "mm_placeholders": {}, "mm_hashes": {"image": ["one", "two"]}}

    async def _process_multimodal_async(prompt: list[int], *, mm_processor_kwargs: Any = None) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, process, prompt, mm_processor_kwargs)

    processor = SimpleNamespace(takes_wishes=True)
    left: list[str] = []
    made = SimpleNamespace(
        _process_multimodal_async=_process_multimodal_async,
        mm_processor=processor,
        mm_processor_cache=SimpleNamespace(invalidate=left.append),
        left=left,
    )
    carry(made)
    return made


async def serve(made: Any, contract: RequestContract | None, said: Any) -> Any:
    CURRENT.set(contract)
    return (await made._process_multimodal_async([1], mm_processor_kwargs=said))["given"]


def test_each_request_has_its_own() -> None:
    pruned, off = RequestContract({"vision": QUARTER}), RequestContract({"vision": "off"})

    async def both() -> list[Any]:
        made = renderer()
        asks = (serve(made, pruned, {"fps": 2}), serve(made, off, {WISH: QUARTER}), serve(made, None, {"fps": 1}))
        return await asyncio.gather(*map(asyncio.create_task, asks))

    first, second, third = asyncio.run(both())
    assert first[WISH].vision == QUARTER and first["fps"] == 2
    assert second[WISH].vision == "off", "what the body says gives way"
    assert third == {"fps": 1}
    report = pruned.report
    assert (report.vision_method, report.vision_seen, report.vision_kept, report.exact) == ("divprune", 108, 33, False)
    assert (off.report.vision_method, off.report.vision_seen, off.report.exact) == (None, 0, True)


def test_a_contract_without_images_says_nothing() -> None:
    said = asyncio.run(serve(renderer(), RequestContract({"kv": "off"}), None))
    assert said is None


@pytest.mark.parametrize("thrift", [{"vision": QUARTER}, {}])
def test_what_the_engine_never_gets_leaves_the_processors_cache(thrift: dict[str, Any]) -> None:
    """But what it has stays: the request was handed over, whatever becomes of it then."""

    async def hand_over(request: Any) -> None:
        if request == "dead":
            raise RuntimeError

    async def forget(name: str) -> None: ...

    async def play(request: Any) -> Any:
        made, contract = renderer(), RequestContract(thrift)
        await serve(made, contract, None)
        assert made.left == []
        if request is not None:
            with contextlib.suppress(Exception):
                await careful(hand_over, forget)(request)
        contract.close()
        contract.close()
        return made.left

    expected = {None: ["one", "two"], "dead": ["one", "two"], "fine": []}
    assert {request: asyncio.run(play(request)) for request in expected} == expected
