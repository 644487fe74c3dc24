"""The worker class (``--worker-cls``) that runs our runner in place of the stock one."""

from __future__ import annotations

import os
from typing import Any

from vllm.logger import init_logger
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend
from vllm.v1.worker import cpu_worker

from thriftree.plugins.engine.linear import FewRows
from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.engine.register import uses_trees
from thriftree.plugins.engine.runner_v1 import CompressingCPUModelRunner, TreeCPUModelRunner
from thriftree.plugins.engine.seam import replaced

logger = init_logger(__name__)


class TreeCPUWorker(cpu_worker.CPUWorker):
    """vLLM's CPU worker with a runner of ours: trees and compression, or compression alone."""

    def init_device(self) -> None:
        register_backend(AttentionBackendEnum.CPU_ATTN, "thriftree.plugins.engine.cpu_attention.TreeBackend")
        _cached_get_attn_backend.cache_clear()  # an engine before us in this process chose the stock one
        # `init_device` names the runner class through its module: the one seam it offers.
        runner = TreeCPUModelRunner if uses_trees(self.vllm_config) else CompressingCPUModelRunner
        with replaced(cpu_worker, "CPUModelRunner", runner):
            super().init_device()

    def determine_available_memory(self) -> int:
        """What compression holds beside the cache comes out of the memory that is meant for the cache.

        Not where ``--kv-cache-memory-bytes`` says how large the cache itself is to be.
        """
        found: int = super().determine_available_memory()
        side = self.model_runner.side_memory()
        if side is None:
            return found
        requests = self.scheduler_config.max_num_seqs
        given = self.cache_config.kv_cache_memory_bytes is not None and not os.environ.get("VLLM_CPU_KVCACHE_SPACE")
        left = found if given else side.room(found, requests, self.model_runner.compression.terms.least())
        held = side.held(int(left / side.cached), requests)
        logger.info(
            "thriftree: KV compression holds up to %d MiB beside the cache (%.1f %% of it, %d requests at once); "
            "the cache gets %d MiB of %d MiB%s",
            held >> 20, 100 * held / left, requests, left >> 20, found >> 20,
            ": --kv-cache-memory-bytes is the cache alone" if given else "",
        )  # fmt: skip
        return left

    def load_model(self, **kwargs: Any) -> None:
        options = SpeculationOptions.of(self.vllm_config.additional_config or {})
        if options.linear == "stock":
            return super().load_model(**kwargs)
        few_rows = FewRows()
        with few_rows.collecting():
            super().load_model(**kwargs)
        few_rows.settle()

    def thrift_stats(self) -> dict[str, Any]:
        """Drafters' memory and the measured step costs; the server calls it through `collective_rpc`."""
        return self.model_runner.proposer.stats() if isinstance(self.model_runner, TreeCPUModelRunner) else {}
