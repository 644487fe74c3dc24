"""`keydiff`: keys unlike the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows


@dataclass(frozen=True)
class KeyDiff(Method):
    """Keep the rows whose keys point away from the mean direction of all keys.

    The score is minus the cosine between a key and the mean of the normalised cached keys. No attention is computed.

    Paper: KeyDiff, arXiv 2504.15364. The mean is over the rows still cached, as in the paper's block-wise form.
    """

    paper: ClassVar[str] = "2504.15364"

    def score(self, rows: Rows) -> Tensor:
        keys = rows.keys
        scale = vector_norm(keys, dim=-1).clamp_min_(1e-12).reciprocal_()  # [H, M] one over each key's length
        anchor = normalize((scale[:, None] @ keys).squeeze(1), dim=-1)  # of the sum, as of the mean
        along = torch.stack([mine.mv(mean) for mine, mean in zip(keys, anchor, strict=True)])  # faster than one product
        return -along * scale
