"""`auto`: the calibrated best-first merge of suffix matches and recycled rows. The default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.merge import MergedDrafter


@dataclass(frozen=True, slots=True)
class AutoConfig:
    """Every source at once, each candidate weighed by how often its like was right (see `merge`).

    Suffix matches are strong where text repeats, rows of the target's own top tokens elsewhere. Candidates
    are looked up in calibration cells (source, match length, share, rank, agreement), and nodes are added
    best-first by path product, so that `values` are probabilities.

    Papers: rows from Token Recycling (arXiv 2408.08696), frequencies from SuffixDecoding (arXiv 2411.04975);
    the merge and its calibration are ours.
    """

    paper: ClassVar[str] = "2408.08696"
    longest: int = field(
        default=16, metadata={"minimum": 2, "maximum": 64, "description": "tokens compared in a match"}
    )
    tries: int = field(default=32, metadata={"minimum": 1, "maximum": 1024, "description": "occurrences looked at"})
    floor: float = field(
        default=0.005,
        metadata={"minimum": 0.0, "maximum": 1.0, "description": "least path probability of a node"},
    )
    library: bool = field(default=True, metadata={"description": "match the tenant's earlier answers too"})


class Auto(MergedDrafter):
    wants_rows: ClassVar[bool] = True

    def __init__(self, memory: Memory, config: AutoConfig) -> None:
        super().__init__(
            memory,
            rows=True,
            library=config.library,
            longest=config.longest,
            tries=config.tries,
            floor=config.floor,
        )
