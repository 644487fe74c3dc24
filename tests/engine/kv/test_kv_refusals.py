"""Engines that cannot compress: `on` does not start and names the flag, `auto` starts, says why and takes no wish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from thriftree.plugins.engine.kv.support import terms_of
from thriftree.zoo import tiny

from ..engines import Ask, engine
from .replay import head_file

pytestmark = pytest.mark.engine
CONNECTOR = {"kv_connector": "SharedStorageConnector", "kv_role": "kv_both"}
CANNOT: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows": ("sliding", {}, "sliding-window"),
    "fp8": ("llama-gqa", {"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
    "connector": ("llama-gqa", {"kv_transfer_config": CONNECTOR}, "--kv-transfer-config"),
    "pooling": ("llama-gqa", {"runner": "pooling"}, "pooling"),
    "pipeline": ("llama-gqa", {"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
    "worker": ("llama-gqa", {"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"}, "--worker-cls"),
    "scheduler": ("llama-gqa", {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "--scheduler-cls"),
    "other speculation": (
        "llama-gqa",
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
        "--speculative-config",
    ),
}


def config(**kv: Any) -> dict[str, Any]:
    return {"additional_config": {"thriftree": {"kv": kv}}}


@pytest.mark.parametrize("kind", CANNOT)
def test_on_names_the_flag(kind: str) -> None:
    model, flags, named = CANNOT[kind]
    with (
        pytest.raises(Exception, match="--kv-compression on: ") as told,
        engine(str(tiny.ensure(model)), **flags, **config(compression="on")),
    ):
        pass
    assert named in str(told.value)


@pytest.mark.parametrize("kind", ["windows", "scheduler"])
def test_auto_starts_and_says_why(kind: str) -> None:
    model, flags, named = CANNOT[kind]
    asked = SamplingParams(max_tokens=4, extra_args={"thriftree": {"kv": {"method": "snapkv"}}})
    plain = [SamplingParams(max_tokens=4), SamplingParams(max_tokens=4, extra_args={"thriftree": {"kv": "off"}})]
    with engine(str(tiny.ensure(model)), **flags, **config()) as here:
        reason = terms_of(here.engine.vllm_config).reason
        assert reason is not None and named in reason
        with pytest.raises(VLLMValidationError, match=r"thriftree\.kv: ") as told:
            here.run([Ask([1, 2, 3], asked)])
        assert named in str(told.value)
        answers = here.run([Ask([1, 2, 3], params) for params in plain])
        assert [answer and len(answer.tokens[0]) for answer in answers] == [4, 4]


def test_a_stock_engine_that_was_told_nothing_does_not_ignore_a_wish() -> None:
    """Our package is installed, and that is all. Speculation changes no answer, so that wish may be ignored."""
    with engine(str(tiny.ensure("llama-gqa"))) as stock:
        for wish in ({"method": "snapkv"}, {"budget": 4096}, "on"):
            for contract in ({"kv": wish}, json.dumps({"kv": wish, "speculation": "off"})):
                asked = SamplingParams(max_tokens=4, extra_args={"thriftree": contract})
                with pytest.raises(VLLMValidationError, match=r"thriftree\.kv: ") as told:
                    stock.run([Ask([1, 2, 3], asked)])
                assert wish == "on" or "--additional-config" in str(told.value)
                assert told.value.parameter == "vllm_xargs.thriftree"
        fine: list[Any] = ["off", {"kv": "off"}, {"speculation": {"method": "suffix"}}, {}]
        answers = stock.run(
            [Ask([1, 2, 3], SamplingParams(max_tokens=4, extra_args={"thriftree": wish})) for wish in fine]
        )
        assert [answer and len(answer.tokens[0]) for answer in answers] == [4] * len(fine)


@pytest.mark.parametrize(
    ("kv", "named"),
    [
        ({"max_tokens": 80}, "--kv-max-tokens 80: must be at least 164"),
        ({"method": "pyramid_kv"}, "--kv-method pyramid_kv: .*--kv-tiers"),
        ({"method": "razor_attention"}, "--kv-method razor_attention: .*probe heads"),
        ({"heads": "OTHER"}, "head file"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(kv: dict[str, Any], named: str, tmp_path: Path) -> None:
    if kv.get("heads") == "OTHER":
        kv = {**kv, "heads": head_file(tmp_path / "other.heads.json", kv_heads=3, layers=30, dim=64)}
    with pytest.raises(Exception, match=named), engine(str(tiny.ensure("llama-gqa")), **config(**kv)):
        pass


def test_wishes_that_do_not_fit() -> None:
    """A request's error names the field, and the next request is served."""
    wishes = {
        "kv.budget": {"budget": 10},
        "kv.keep": {"keep": 1.5},
        "kv.method": {"method": "oracle"},
        "kv.recent": {"recent": 0},
        "kv.queries": {"method": "snapkv", "queries": 99},
        "is not available here": {"method": "razor_attention"},
    }
    with engine(str(tiny.ensure("llama-gqa")), **config()) as here:
        for named, wish in wishes.items():
            params = SamplingParams(max_tokens=2, extra_args={"thriftree": {"kv": wish}})
            with pytest.raises(VLLMValidationError, match=r"thriftree\.kv\.") as told:
                here.run([Ask([1, 2, 3], params)])
            assert named in str(told.value)
        fine = SamplingParams(max_tokens=2, extra_args={"thriftree": {"kv": {"method": "snapkv"}}})
        assert here.run([Ask([1, 2, 3], fine)])[0] is not None
