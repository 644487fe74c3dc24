"""Whether an engine can have late layers. An operator asks for them by number, so what cannot be is no start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from thriftree.plugins.engine.flags import spreading
from thriftree.plugins.engine.vision.options import VisionOptions

WORKER = "thriftree.plugins.engine.vision.late.worker.LateCPUWorker"
SCHEDULER = "thriftree.plugins.engine.vision.late.scheduler.LateScheduler"


def layer_of(vllm_config: Any) -> int | None:
    """The first late layer that the operator has named; None: every layer has all rows."""
    model = vllm_config.model_config
    if model is None or model.is_submodel_config:  # vLLM configures a vision model's language model once more
        return None
    return VisionOptions.of(vllm_config.additional_config or {}).late_layer


def wire(vllm_config: Any) -> None:
    """Our worker and scheduler, unless the operator has others."""
    if vllm_config.parallel_config.worker_cls == "auto":
        vllm_config.parallel_config.worker_cls = WORKER
    if vllm_config.scheduler_config.scheduler_cls is None:
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER


def check(vllm_config: Any, layer: int, pruning: str | None) -> None:
    """Raise ValueError naming every flag that excludes late layers. `pruning`: why no image is pruned here, if so."""
    found = [pruning] if pruning is not None else list(_reasons(vllm_config, layer))
    if found:
        raise ValueError(f"--vision-late-layer {layer}: {'; '.join(found)}")


def step_tokens(vllm_config: Any) -> int:
    """Tokens of a prompt that can come in one step."""
    scheduler = vllm_config.scheduler_config
    most = int(scheduler.max_num_scheduled_tokens or scheduler.max_num_batched_tokens)
    long = scheduler.long_prefill_token_threshold
    return min(most, long) if long > 0 else most


def _reasons(config: Any, layer: int) -> Iterator[str]:
    yield from _layers(config.model_config, layer)
    yield from _engine(config)
    yield from spreading(config.parallel_config)


def _engine(config: Any) -> Iterator[str]:
    from vllm import envs
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    from thriftree.plugins.engine.kv.support import uses_compression
    from thriftree.plugins.engine.register import uses_trees

    cache, scheduler, speculative = config.cache_config, config.scheduler_config, config.speculative_config
    if not current_platform.is_cpu():
        yield f"the {current_platform.device_name} engine: the adapter of this release is for vLLM's CPU engine"
    if getattr(envs, "VLLM_USE_V2_MODEL_RUNNER", None):
        yield "VLLM_USE_V2_MODEL_RUNNER=1: late layers run on the V1 model runner"
    if cache.enable_prefix_caching:
        yield "--enable-prefix-caching: late layers cache no function of the prefix (--no-enable-prefix-caching)"
    if config.compilation_config.mode not in (None, CompilationMode.NONE) or not config.model_config.enforce_eager:
        yield "--enforce-eager is missing: compiled layers and CUDA graphs have no place where rows leave"
    if speculative is not None:
        drafts = "token trees" if uses_trees(config) else speculative.method
        yield f"--speculative-config: {drafts} draft by positions that late layers do not have"
    elif uses_compression(config):
        yield "--kv-compression: it drops by positions that late layers do not have (--kv-compression off)"
    if cache.kv_sharing_fast_prefill:
        yield "--kv-sharing-fast-prefill"
    if config.kv_transfer_config is not None:
        yield "--kv-transfer-config: a connector ships blocks by position"
    if config.lora_config is not None:
        yield "--enable-lora: adapters are dealt out by the rows of a whole step"
    if scheduler.scheduler_cls not in (None, SCHEDULER):
        yield f"--scheduler-cls {scheduler.scheduler_cls}: it must be {SCHEDULER}"
    if config.parallel_config.worker_cls not in ("auto", WORKER):
        yield f"--worker-cls {config.parallel_config.worker_cls}: it must be {WORKER}"


def _layers(model: Any, layer: int) -> Iterator[str]:
    from thriftree.plugins.engine.kv.support import alibi, windowed

    text = model.hf_text_config
    last = text.num_hidden_layers - 1
    if layer > last:
        yield f"the language model's last layer is {last}"
    deep = len(getattr(getattr(model.hf_config, "vision_config", None), "deepstack_visual_indexes", None) or ())
    if layer < deep:
        yield f"the model adds the tower's rows behind its first {deep} layers (deepstack): at least {deep}"
    if model.runner_type == "pooling":
        yield "a pooling model keeps no cache"
    if model.use_mla or model.is_hybrid or model.is_attention_free:
        yield "the language model's layers are not plain attention"
    if windowed(text) or alibi(text):
        yield "the language model's attention goes by the distance of keys in the cache (windows, ALiBi)"
