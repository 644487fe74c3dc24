"""The worker class (``--worker-cls``) that runs our runner in place of the stock one."""

from __future__ import annotations

from unittest.mock import patch

from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.worker import cpu_worker

from thriftree.plugins.engine.runner_v1 import TreeCPUModelRunner


class TreeCPUWorker(cpu_worker.CPUWorker):
    """vLLM's CPU worker; the class that it instantiates for its runner is `TreeCPUModelRunner`."""

    def init_device(self) -> None:
        register_backend(AttentionBackendEnum.CPU_ATTN, "thriftree.plugins.engine.cpu_attention.TreeBackend")
        # `init_device` names the runner class through its module: the one seam it offers.
        with patch.object(cpu_worker, "CPUModelRunner", TreeCPUModelRunner):
            super().init_device()
