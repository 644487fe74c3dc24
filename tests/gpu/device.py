"""What the tests on a real GPU share. They need torch and Triton, no vLLM: `python -m pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels.interpreter import DEVICE, INTERPRETED

needs_gpu = pytest.mark.skipif(
    DEVICE != "cuda" or INTERPRETED, reason="no CUDA device, or TRITON_INTERPRET=1: runs where torch sees a GPU"
)


def without_waiting(call: Callable[[], Any]) -> Any:
    """What a second call gives, in which nothing may wait for the device (the first one compiles)."""
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
