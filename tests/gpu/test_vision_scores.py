"""The readings on a real GPU: the cases of the interpreted tests, and towers as they are."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tests.gpu.device import needs_gpu, without_waiting
from tests.kernels.test_vision_scores_triton import kernel, test_column_sums
from thriftree.kernels import vision_scores

__all__ = ["kernel", "test_column_sums"]

pytestmark = needs_gpu


@pytest.mark.parametrize(
    ("lengths", "dim", "dtype", "cls"),
    [
        ([577], 64, torch.bfloat16, True),
        ([577] * 8, 64, torch.float16, True),
        ([2880], 80, torch.bfloat16, False),
        ([1, 2304, 333], 72, torch.float32, False),
    ],
)
@pytest.mark.parametrize("reading", get_args(vision_scores.Reading))
def test_readings(reading: vision_scores.Reading, lengths: list[int], dim: int, dtype: torch.dtype, cls: bool) -> None:
    """Against the same call on the CPU, which runs the torch reference."""
    generator = torch.Generator().manual_seed(0)
    q, k = (2 * torch.randn(sum(lengths), 16, dim, generator=generator).to(dtype) for _ in range(2))
    starts, options = [0, *torch.tensor(lengths).cumsum(0).tolist()], {"cls": cls, "threshold": 1.2}
    expected = vision_scores.read(reading, q, k, starts, dim**-0.5, **options)
    q, k = q.cuda(), k.cuda()
    found = without_waiting(lambda: vision_scores.read(reading, q, k, starts, dim**-0.5, **options))
    assert found.dtype == torch.float32
    assert torch.allclose(found.cpu(), expected, rtol=2e-4, atol=1e-4 * float(expected.abs().max()))
