"""What the kernels must give, in plain torch: every device."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows of a strip of the symmetric product.
STRIP = 384
#: A row of which less than this share is left after projection lies in the span of those picked: float32 noise.
SPANNED = 1e-5


def cosines(unit: Tensor) -> Tensor:
    """``[N, N]`` float32 products of all pairs, exactly symmetric; 0 for rows with NaN or inf."""
    rows = unit.float()
    count = len(rows)
    if rows.is_cuda:
        out = rows @ rows.T
    else:  # half of the work: strips of the lower triangle, mirrored
        out = torch.empty(count, count)
        for start in range(0, count, STRIP):
            part = slice(start, min(start + STRIP, count))
            torch.mm(rows[start:], rows[part].T, out=(strip := torch.empty(count - start, part.stop - start)))
            out[start:, part] = strip
            out[part, start:] = strip.T
    broken = ~out.diagonal().isfinite()
    return out.masked_fill_(broken[:, None] | broken, 0.0) if rows.is_cuda or bool(broken.any()) else out


def isolated(cosines: Tensor) -> Tensor:
    """Scalar int64: the row whose nearest other row is the farthest. The diagonal of `cosines` is overwritten."""
    cosines.fill_diagonal_(-torch.inf)
    return cosines.amax(1).argmin()


def max_min(unit: Tensor, k: int, first: int | None) -> Tensor:
    """See `thriftree.kernels.vision_select.max_min`."""
    picks = torch.empty(k, dtype=torch.int64, device=unit.device)
    if not k:
        return picks
    between = cosines(unit)
    nearest = torch.full((len(unit),), -torch.inf, device=unit.device)
    pick = int(isolated(between)) if first is None else first
    for step in range(k):
        if step:
            pick = int(nearest.argmin())
        picks[step] = pick
        torch.maximum(nearest, between[pick], out=nearest)
        nearest[pick] = torch.inf
    return picks


def volumes(cosines: Tensor, quality: Tensor | None) -> tuple[Tensor, Tensor]:
    """Quality and squared volume of each row alone, ``[N]`` float32. A row's length is 1 or 0, without rounding."""
    alone = cosines.diagonal().round()
    weight = torch.ones_like(alone) if quality is None else quality.float().nan_to_num().clamp_min(0.0)
    return weight, alone * weight * weight


def greedy_dpp(unit: Tensor, quality: Tensor | None, k: int) -> Tensor:
    """See `thriftree.kernels.vision_select.greedy_dpp`. Incremental Cholesky, ``k * k * N``."""
    between = cosines(unit)
    weight, left = volumes(between, quality)
    least, taken = left * SPANNED, torch.zeros_like(left, dtype=torch.bool)
    columns = torch.empty(k, len(unit), device=unit.device)
    picks: list[int] = []
    while len(picks) < k:
        gain, pick = left.max(0)
        if not float(gain) > 0:
            break
        step, at = len(picks), int(pick)
        new = between[at] * weight * weight[at]
        torch.addmv(new, columns[:step].T, columns[:step, at], alpha=-1, out=columns[step])
        columns[step] *= gain.rsqrt()
        left = torch.addcmul(left, columns[step], columns[step], value=-1)
        taken[at] = True
        left.masked_fill_((left <= least) | taken, 0.0)
        picks.append(at)
    rest = torch.where(taken, -1.0, weight).sort(descending=True, stable=True).indices[: k - len(picks)]
    return torch.cat((torch.tensor(picks, dtype=torch.int64, device=unit.device), rest))
