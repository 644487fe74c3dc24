"""The choices on a real GPU: the cases of the interpreted tests, and whole images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.gpu.device import needs_gpu, without_waiting
from tests.kernels.test_vision_select_triton import (
    kernel,
    test_greedy_dpp,
    test_max_min,
    test_more_than_the_rows_span,
    test_ties_zeros_and_broken_rows,
)
from thriftree.kernels import vision_select
from thriftree.kernels.vision_select import reference

__all__ = ["kernel", "test_greedy_dpp", "test_max_min", "test_more_than_the_rows_span"]
__all__ += ["test_ties_zeros_and_broken_rows"]

pytestmark = needs_gpu
WHOLE = [(576, 64), (576, 288), (576, 576), (2880, 288)]


def image(count: int, dtype: torch.dtype) -> Tensor:
    """Rows with neighbours that are alike, as a tower gives them."""
    values = torch.randn(count // 4, 1024, generator=torch.Generator().manual_seed(2)).repeat_interleave(4, 0)
    values += 0.3 * torch.randn(len(values), 1024, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(values, dim=-1).to("cuda", dtype)


@pytest.mark.parametrize(("count", "k"), WHOLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_whole_images_max_min(count: int, k: int, dtype: torch.dtype) -> None:
    unit = image(count, dtype)
    for first in (None, 0, count - 1):
        picks = without_waiting(lambda first=first: vision_select.max_min(unit, k, first))
        assert torch.equal(picks, reference.max_min(unit, k, first))


@pytest.mark.parametrize(("count", "k"), WHOLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_whole_images_dpp(count: int, k: int, dtype: torch.dtype, weighted: bool) -> None:
    """Sums in another order part ways at a near tie, so every pick is held against float64: no other adds more."""
    unit = image(count, dtype)
    quality = torch.linspace(0.1, 2, count, device="cuda") if weighted else None
    picks = without_waiting(lambda: vision_select.greedy_dpp(unit, quality, k))
    assert len(set(picks.tolist())) == k
    weight, left = (part.double() for part in reference.volumes(reference.cosines(unit), quality))
    volume = reference.cosines(unit).double() * weight[:, None] * weight
    least, columns = left.clone() * 1e-3, torch.zeros(k, count, dtype=torch.float64, device="cuda")
    lost = []
    for step, pick in enumerate(picks):
        gain, most = left[pick].clone(), left.max()
        if bool((left <= least).all()):  # from here on noise decides
            break
        lost.append((most - gain) / most)
        columns[step] = (volume[pick] - columns[:step, pick] @ columns[:step]) / gain.sqrt()
        left = left - columns[step] ** 2
        left[picks[: step + 1]] = 0
    assert len(lost) >= min(k, 100)
    assert float(torch.stack(lost).max()) <= 1e-3


def test_the_matrix_is_symmetric() -> None:
    for count in (7, 576, 2880):
        between = reference.cosines(image(max(count, 4), torch.bfloat16)[:count])
        assert torch.equal(between, between.T)
