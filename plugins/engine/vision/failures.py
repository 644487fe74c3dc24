"""How often methods raised in this worker, and how the front end asks for it.

Workers of any kind prune images, so the question is put below vLLM's worker class (``--worker-extension-cls``).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

#: Images by method, since the process began. Evenly spaced rows of them were kept.
FAILURES: Counter[str] = Counter()
EXTENSION = f"{__name__}.AsksFailures"


class AsksFailures:
    """A worker has this among its bases.

    Underscores: with another name vLLM refuses a worker class whose own base it has extended before in this process.
    """

    def __thrift_vision_failures__(self) -> dict[str, int]:
        """For `collective_rpc`."""
        return dict(FAILURES)


def extend(vllm_config: Any) -> None:
    """Put `AsksFailures` under the workers, unless the operator has put something else there: then nobody counts."""
    if not vllm_config.parallel_config.worker_extension_cls:
        vllm_config.parallel_config.worker_extension_cls = EXTENSION
