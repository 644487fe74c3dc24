"""What late layers do not go together with is said by the flag's name, and the engine does not start. Real configs."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from thriftree.plugins.engine import launch
from thriftree.plugins.engine.register import PROPOSER
from thriftree.plugins.engine.vision.late import support
from thriftree.plugins.engine.vision.late.layers import LateLayers
from thriftree.plugins.engine.vision.options import VisionOptions
from thriftree.plugins.engine.vision.support import settings_of, terms_of
from thriftree.zoo import tiny, tiny_vision

from ..scenarios import flags

LATE: dict[str, Any] = {"late_layer": 2}
TREES = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": 4}
NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}


def config(family: str = "llava", late: dict[str, Any] = LATE, model: str | None = None, **more: Any) -> Any:
    path = model or str(tiny_vision.ensure(family))
    extra = {"thriftree": {"vision": late, **more.pop("ours", {})}}
    given = {"enforce_eager": True, "enable_prefix_caching": False, "dtype": "float32", **flags(), **more}
    return EngineArgs(model=path, additional_config=extra, **given).create_engine_config()


@pytest.mark.parametrize("family", tiny_vision.FAMILIES)
def test_every_family_can(family: str) -> None:
    made = config(family)
    assert (made.parallel_config.worker_cls, made.scheduler_config.scheduler_cls) == (support.WORKER, support.SCHEDULER)
    terms = settings_of(made.model_config).terms
    assert (terms.late_layer, terms.step_tokens) == (2, made.scheduler_config.max_num_batched_tokens)
    assert terms_of(made).late_layer == 2


def test_without_it_nothing_is_ours() -> None:
    made = config(late={}, enable_prefix_caching=True)
    assert settings_of(made.model_config).terms.late_layer is None
    assert made.parallel_config.worker_cls != support.WORKER


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"enable_prefix_caching": True}, "--enable-prefix-caching: "),
        ({"enforce_eager": False}, "--enforce-eager is missing"),
        ({"speculative_config": TREES}, "--speculative-config: token trees"),
        ({"speculative_config": NGRAM}, "--speculative-config: ngram"),
        ({"ours": {"kv": {}}}, r"--kv-compression: .*\(--kv-compression off\)"),
        ({"enable_lora": True}, "--enable-lora: "),
        ({"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "--pipeline-parallel-size 2"),
        ({"scheduler_cls": "a.Scheduler"}, "--scheduler-cls a.Scheduler: it must be thriftree"),
        ({"worker_cls": "a.Worker"}, "--worker-cls a.Worker: it must be thriftree"),
        ({"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
        ({"late": {"late_layer": 3}}, "the language model's last layer is 2"),
        ({"family": "qwen3-vl", "late": {"late_layer": 1}}, r".*first 2 layers \(deepstack\): at least 2"),
        ({"compilation_config": {"cudagraph_mm_encoder": True}}, ".*cudagraph_mm_encoder"),  # nothing is pruned
    ],
)
def test_flags_that_exclude_it(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"--vision-late-layer \d: {said}"):
        config(**given)


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("parallel_config", "decode_context_parallel_size", 2, "--decode-context-parallel-size 2"),
        ("parallel_config", "prefill_context_parallel_size", 2, "--prefill-context-parallel-size 2"),
        ("", "kv_transfer_config", object(), "--kv-transfer-config"),
        ("model_config", "runner_type", "pooling", "a pooling model"),
        ("model_config", "is_hybrid", True, "not plain attention"),
        ("model_config.hf_text_config", "sliding_window", 64, "windows"),
        ("model_config.hf_text_config", "alibi", True, "ALiBi"),
    ],
)
def test_what_needs_more_than_this_machine(part: str, name: str, value: Any, said: str) -> None:
    made = Changed(config(), part, name, value)
    with pytest.raises(ValueError, match=f"--vision-late-layer 2: .*{said}"):
        support.check(made, 2, None)


class Changed:
    """A config with one value changed, for values that vLLM does not let be set here."""

    def __init__(self, base: Any, part: str, name: str, value: Any) -> None:
        self._base, self._path, self._name, self._value = base, part, name, value

    def __getattr__(self, name: str) -> Any:
        head, _, rest = self._path.partition(".")
        if not head:
            return self._value if name == self._name else getattr(self._base, name)
        found = getattr(self._base, name)
        return Changed(found, rest, self._name, self._value) if name == head else found


def test_other_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    made = config()
    with monkeypatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
        with pytest.raises(ValueError, match="VLLM_USE_V2_MODEL_RUNNER=1: late layers run on the V1"):
            support.check(made, 2, None)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    with pytest.raises(ValueError, match="the adapter of this release is for vLLM's CPU engine"):
        support.check(made, 2, None)


def test_models_without_images() -> None:
    with pytest.raises(ValueError, match="--vision-late-layer 2: the model takes no images"):
        config(model=str(tiny.ensure("llama-gqa")), limit_mm_per_prompt={})


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ({"late_layer": 0}, r"thriftree\.vision\.late_layer must be a layer's number from 1, not 0"),
        ({"late_layer": True}, r"thriftree\.vision\.late_layer"),
        ({"late_layer": "2"}, r"thriftree\.vision\.late_layer"),
        ({"late_layer": 2, "pruning": "off"}, r"thriftree\.vision\.late_layer needs pruning auto or on"),
    ],
)
def test_mistakes_are_named(late: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VisionOptions.of({"thriftree": {"vision": late}})


def test_layers_of_another_build() -> None:
    with pytest.raises(ValueError, match="--vision-late-layer 1: no such layer in SimpleNamespace"):
        LateLayers(SimpleNamespace(), 1)
    model = SimpleNamespace(layers=nn.ModuleList([nn.Identity(), nn.Identity()]), norm=nn.Identity())
    with pytest.raises(ValueError, match="--vision-late-layer 1: Identity has 0 attention modules, not 1"):
        LateLayers(SimpleNamespace(model=model), 1)


def arguments(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(additional_config=None, speculative_config=None, async_scheduling=None, **more)


def test_what_a_profile_brings_steps_aside() -> None:
    """The gateway's own defaults do; what the operator insists on is refused with the rest."""
    args = arguments()
    assert launch.configure(args, {}, {"compression": "auto"}, LATE) is False
    assert args.speculative_config is None and args.additional_config == {"thriftree": {"vision": LATE}}
    args = arguments()
    assert launch.configure(args, {}, {"compression": "on"}, LATE) is False
    assert args.additional_config["thriftree"]["kv"] == {"compression": "on"}
    args = arguments()
    assert launch.configure(args, {}, {"compression": "auto"}, {}) is True
