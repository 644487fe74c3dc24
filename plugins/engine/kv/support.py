"""What an engine's model allows of KV compression, and the parts of it that every process needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from thriftree.plugins.engine.flags import spreading
from thriftree.plugins.engine.kv.options import KVOptions
from thriftree.plugins.engine.register import uses_trees
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.heads import Fingerprint, HeadFile, shipped
from thriftree.plugins.kv_cache.request import Terms

_NO_HEADS = "it needs a head file of this model (`thriftree probe heads MODEL --out FILE`, then --kv-heads FILE)"


@dataclass(frozen=True)
class KVSupport:
    """`reason`: why this engine compresses nothing (None: it can); `missing`: method -> why not that one."""

    reason: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    block: int = 16  # tokens of a block of the compressed layers


def support(vllm_config: Any) -> KVSupport:
    """What `vllm_config` allows."""
    reason = next(_reasons(vllm_config), None)
    missing = {}
    for name in registry.names():
        info, ranks = registry.describe(name), vllm_config.parallel_config.tensor_parallel_size
        if info.needs_rope and not _plain_rope(vllm_config.model_config):
            missing[name] = "it needs a model with plain rotary positions"
        if info.retrieval and ranks > 1:
            missing[name] = f"--tensor-parallel-size {ranks}: ranks would need equally many retrieval heads per layer"
    return KVSupport(reason, missing, vllm_config.cache_config.block_size)


def retrieval_heads(vllm_config: Any, options: KVOptions) -> tuple[tuple[int, ...], ...] | None:
    """Retrieval heads of each layer, of this model; None: the server has no head file.

    Raises:
        ValueError: a head file that cannot be read or is another model's.
    """
    if options.heads == "off" or vllm_config.parallel_config.tensor_parallel_size > 1:
        return None
    fingerprint = Fingerprint.of(vllm_config.model_config.hf_text_config)
    if options.heads == "default":
        file = shipped(fingerprint)
        return None if file is None else file.retrieval()
    file = HeadFile.load(options.heads)
    file.check(fingerprint)
    return file.retrieval()


def terms_of(vllm_config: Any) -> Terms:
    """What requests may ask for on this engine.

    Raises:
        ValueError: the operator's settings do not fit the engine; the message names the flag.
    """
    options = KVOptions.of(vllm_config.additional_config or {})
    if options.compression == "off":
        return Terms()
    found = support(vllm_config)
    layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    return options.terms(found.reason, {**_headless(vllm_config, options), **found.missing}, found.block, layers)


def _headless(vllm_config: Any, options: KVOptions) -> dict[str, str]:
    """Methods that need a head file, where there is none for this model."""
    if options.heads == "off" or retrieval_heads(vllm_config, options) is not None:
        return {}  # `options` words the first
    why = "no head file is shipped for this model (--kv-heads FILE, made by `thriftree probe heads`)"
    return {name: why for name in registry.names() if registry.describe(name).retrieval}


def uses_compression(vllm_config: Any) -> bool:
    """Whether requests of this engine may have compressed caches."""
    return terms_of(vllm_config).reason is None


def _plain_rope(model: Any) -> bool:
    text = model.hf_text_config
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return kind in ("default", "llama3") and not getattr(model, "uses_mrope", False)


def _reasons(config: Any) -> Iterator[str]:
    from vllm import envs
    from vllm.platforms import current_platform

    from thriftree.plugins.engine.register import SCHEDULER, WORKER

    parallel, cache, model, text = (
        config.parallel_config, config.cache_config, config.model_config, config.model_config.hf_text_config,
    )  # fmt: skip
    if not current_platform.is_cpu():
        yield f"the adapter of this release is for vLLM's CPU engine, not for {current_platform.device_name}"
    if getattr(envs, "VLLM_USE_V2_MODEL_RUNNER", None):
        yield "VLLM_USE_V2_MODEL_RUNNER=1: compression runs on the V1 model runner"
    yield from spreading(parallel)
    if str(cache.cache_dtype) not in ("auto", str(model.dtype).removeprefix("torch.")):
        yield f"--kv-cache-dtype {cache.cache_dtype}: rows are scored in the model's own type"
    if cache.kv_sharing_fast_prefill:
        yield "--kv-sharing-fast-prefill"
    if config.kv_transfer_config is not None:
        yield "--kv-transfer-config: a connector addresses blocks by position"
    speculative = config.speculative_config
    if speculative is not None and not uses_trees(config):
        yield "--speculative-config: of speculation, it runs with thriftree's trees alone"
    if model.runner_type == "pooling":
        yield "a pooling model keeps no cache"
    if model.use_mla:
        yield "the model's attention (MLA) has no key per head"
    if model.is_hybrid or model.is_attention_free:
        yield "the model's recurrent layers have no cache of keys"
    if model.is_encoder_decoder:
        yield "the model is an encoder-decoder"
    if getattr(model, "is_mm_prefix_lm", False):
        yield "the model attends both ways inside an image, by key positions"
    if windowed(text):
        yield "the model has sliding-window or chunked layers, whose kernel goes by key positions"
    if alibi(text):
        yield "the model's ALiBi biases go by key positions"
    # Last: where one of the others holds, vLLM has filled in its own worker by the time that requests are checked.
    if config.scheduler_config.scheduler_cls not in (None, SCHEDULER):
        yield f"--scheduler-cls {config.scheduler_config.scheduler_cls}: it must be {SCHEDULER}"
    if parallel.worker_cls not in ("auto", WORKER):
        yield f"--worker-cls {parallel.worker_cls}: it must be {WORKER}"


def windowed(text: Any) -> bool:
    """Whether some layers of a language model with this config attend to a window or chunk alone."""
    window = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds:  # these say what each layer does
        window = bool(kinds - {"full_attention"})
    return window or getattr(text, "attention_chunk_size", None) is not None


def alibi(text: Any) -> bool:
    """Whether its attention has ALiBi biases."""
    named = getattr(text, "position_embedding_type", None) == "alibi" or getattr(text, "alibi", False)
    attention = getattr(text, "attn_config", None)
    inner = attention.get("alibi") if isinstance(attention, Mapping) else getattr(attention, "alibi", False)
    return bool(named or inner or getattr(text, "model_type", "") == "bloom")
