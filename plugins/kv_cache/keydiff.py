"""`keydiff`: keys unlike the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
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
        keys = normalize(rows.keys, dim=-1)
        anchor = normalize(keys.mean(dim=1), dim=-1)
        return -(keys @ anchor[:, :, None]).squeeze(-1)
