"""The worker class (``--worker-cls``) that runs our runner in place of the stock one."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import _cached_get_attn_backend
from vllm.v1.worker import cpu_worker

from thriftree.plugins.engine.linear import FewRows
from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.engine.register import uses_trees
from thriftree.plugins.engine.runner_v1 import CompressingCPUModelRunner, TreeCPUModelRunner
from thriftree.plugins.engine.seam import replaced


class TreeCPUWorker(cpu_worker.CPUWorker):
    """vLLM's CPU worker with a runner of ours: trees and compression, or compression alone."""

    def init_device(self) -> None:
        register_backend(AttentionBackendEnum.CPU_ATTN, "thriftree.plugins.engine.cpu_attention.TreeBackend")
        _cached_get_attn_backend.cache_clear()  # an engine before us in this process chose the stock one
        # `init_device` names the runner class through its module: the one seam it offers.
        runner = TreeCPUModelRunner if uses_trees(self.vllm_config) else CompressingCPUModelRunner
        with replaced(cpu_worker, "CPUModelRunner", runner):
            super().init_device()

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
