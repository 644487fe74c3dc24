"""The worker class (``--worker-cls``) of an engine with late layers."""

from __future__ import annotations

from vllm.v1.worker import cpu_worker

from thriftree.plugins.engine.seam import replaced
from thriftree.plugins.engine.vision.late.runner import LateCPUModelRunner


class LateCPUWorker(cpu_worker.CPUWorker):
    """vLLM's CPU worker with our runner."""

    def init_device(self) -> None:
        with replaced(cpu_worker, "CPUModelRunner", LateCPUModelRunner):
            super().init_device()
