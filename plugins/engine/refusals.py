"""Engine settings that token trees cannot serve. Refused at start-up, by the flag's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from thriftree.plugins.engine.flags import spreading
from thriftree.plugins.engine.register import SCHEDULER, WORKER


class Unsupported(ValueError):
    """A flag and token-tree speculation exclude each other."""


def refuse(vllm_config: Any) -> None:
    """Raise `Unsupported` naming every flag that trees cannot run with."""
    found = list(_reasons(vllm_config))
    if found:
        raise Unsupported(
            f"token-tree speculation cannot run with {'; '.join(found)} (drop the flag, or start with --thrift off)"
        )


def _reasons(config: Any) -> Iterator[str]:
    from vllm import envs
    from vllm.platforms import current_platform

    parallel, cache, model = config.parallel_config, config.cache_config, config.model_config
    if not current_platform.is_cpu():
        yield f"the {current_platform.device_name} engine: the adapter of this release is for vLLM's CPU engine"
    if getattr(envs, "VLLM_USE_V2_MODEL_RUNNER", None):
        yield "VLLM_USE_V2_MODEL_RUNNER=1: trees run on the V1 model runner"
    yield from spreading(parallel)
    if parallel.worker_cls not in ("auto", WORKER):
        yield f"--worker-cls {parallel.worker_cls}: it must be {WORKER}"
    scheduler = config.scheduler_config.scheduler_cls
    if scheduler not in (None, SCHEDULER):
        yield f"--scheduler-cls {scheduler}: it must be {SCHEDULER}"
    if str(cache.cache_dtype).startswith("fp8"):
        yield f"--kv-cache-dtype {cache.cache_dtype}"
    if cache.kv_sharing_fast_prefill:
        yield "--kv-sharing-fast-prefill"
    if config.kv_transfer_config is not None:
        yield "--kv-transfer-config: a connector would ship blocks before the accepted path is in them"
    if model.runner_type == "pooling":
        yield f"{model.model}: a pooling model generates nothing to draft"
    if model.use_mla:
        yield f"{model.model}: its attention (MLA) has no tree mask here"
    if model.is_hybrid or model.is_attention_free:
        yield f"{model.model}: recurrent layers have one state per request, not one per branch"
    if model.is_encoder_decoder:
        yield f"{model.model}: encoder-decoder models"
    if getattr(model, "uses_xdrope_dim", 0):
        yield f"{model.model}: XD-RoPE positions"
