"""Adapters, two ranks, and what is refused at start-up by the flag's name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest

from thriftree.plugins.engine.register import PROPOSER
from thriftree.zoo import tiny

from .engines import Ask, assert_same, engine
from .test_shapes import random_asks

pytestmark = pytest.mark.engine
RANK = 4


def adapter(folder: Path, model: str, seed: int) -> LoRARequest:
    """A random LoRA of `model`'s query and value projections, in PEFT's layout."""
    config = json.loads((Path(model) / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    sizes = {"q_proj": hidden, "v_proj": config["num_key_value_heads"] * hidden // config["num_attention_heads"]}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for name, size in sizes.items():
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator) * 0.3
            weights[f"{stem}.lora_B.weight"] = torch.randn(size, RANK, generator=generator) * 0.3
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(sizes), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return LoRARequest(f"lora{seed}", seed, str(folder))


def test_adapters(tmp_path: Path) -> None:
    """Requests of two adapters in the same steps.

    Not beside requests without one: there vLLM's CPU kernels take the last adapter's weights for the latter, in plain
    decoding too (docs/lab.md), so there is no right answer to compare with.
    """
    model = str(tiny.ensure("llama-gqa"))
    loras = [adapter(tmp_path / "one", model, 1), adapter(tmp_path / "two", model, 2)]
    asks = [Ask(a.prompt, a.params, a.arrives, lora=loras[i % 2]) for i, a in enumerate(random_asks(9, 3))]
    flags = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    with engine(model, **flags) as plain:
        expected = plain.run(asks)
    with engine(model, {"max_nodes": 12, "adaptive": False}, **flags) as ours:
        got = ours.run(asks)
    assert_same(expected, got)
    assert len({tuple(a.tokens[0]) for a in expected if a is not None}) > 3


@pytest.mark.two_cores
def test_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor parallel 2: every rank walks the same trees, answers equal plain vLLM's on two ranks."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if (os.cpu_count() or 1) > 1 else "0|0")
    model = str(tiny.ensure("llama-gqa"))
    prompts = [{"prompt_token_ids": list(a.prompt)} for a in random_asks(6, 9)]
    params = [SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.7 * (i % 2), seed=i) for i in range(6)]
    common: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512,
                              "tensor_parallel_size": 2, "distributed_executor_backend": "mp"}  # fmt: skip
    answers = []
    for speculative in (None, {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": 8}):
        extra = {"thriftree": {"speculation": {"adaptive": False}}} if speculative else {}
        llm = LLM(model, speculative_config=speculative, additional_config=extra, **common)
        answers.append([list(out.outputs[0].token_ids) for out in llm.generate(prompts, params, use_tqdm=False)])
        if speculative:
            stats = llm.collective_rpc("thrift_stats")
            assert len(stats) == 2 and stats[0]["accepted"] == stats[1]["accepted"] > 0
        llm.llm_engine.engine_core.shutdown()
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "--scheduler-cls"),
        ({"runner": "pooling"}, "pooling"),
    ],
)
def test_refused_by_name(flags: dict[str, Any], named: str) -> None:
    refused = pytest.raises(Exception, match="token-tree speculation cannot run with")
    with refused as told, engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 4}, **flags):
        pass
    assert named in str(told.value)


@pytest.mark.parametrize(
    ("contract", "named"),
    [
        ("sometimes", "must be 'auto', 'off' or a JSON object"),
        ("[1]", "must be 'auto', 'off' or an object"),
        ('{"speculation": {"method": "oracle"}}', "oracle"),
        ({"speculation": {"method": "oracle"}}, "oracle"),
        ({"speculation": {"max_nodes": 0}}, "thriftree.speculation.max_nodes"),
        ({"speculation": "sometimes"}, "thriftree.speculation"),
        ({"speculation": {"method": "suffix", "longest": 1}}, "longest"),
        ({"kv": {"budget": 64}}, "thriftree.kv: this server was started without KV compression"),
        ({"vision": "off"}, "vision"),
    ],
)
def test_bad_wishes_in_a_stock_server(contract: object, named: str, small: Callable[[Any], None]) -> None:
    with pytest.raises(VLLMValidationError, match=r"thriftree|method|longest") as told:
        small(contract)
    assert named in str(told.value)


@pytest.fixture(scope="module")
def small() -> Any:
    with engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 4}) as running:

        def ask(contract: object) -> None:
            params = SamplingParams(max_tokens=2, extra_args={"thriftree": contract})
            running.run([Ask([1, 2, 3], params)])

        yield ask
        wishes = ({"speculation": {"method": "suffix"}}, '{"speculation": {"method": "suffix"}}', "off")
        fine = [SamplingParams(max_tokens=2, extra_args={"thriftree": wish}) for wish in wishes]
        answers = running.run([Ask([1, 2, 3], params) for params in fine])
        assert all(a is not None and len(a.tokens[0]) == 2 for a in answers), "nothing else was disturbed"
