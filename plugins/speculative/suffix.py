"""`suffix`: continuations of what the text's ending was followed by before, as a tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from thriftree.plugins.speculative.memory import Memory
from thriftree.plugins.speculative.merge import MergedDrafter


@dataclass(frozen=True, slots=True)
class SuffixConfig:
    """Draft what followed the longest earlier occurrence of the last tokens, branching where it was followed
    variously.

    Matches are looked for in the request's own prompt and output, and in the tenant's earlier answers where
    those match longer. Depth adapts: to ``depth_factor`` levels per matched token, and to the frequencies,
    since a path's value falls with every doubtful step and ends below ``floor``.

    Paper: SuffixDecoding, arXiv 2411.04975. We depart from it in that a branching continuation stays a tree,
    and that a frequency counts for what was measured of its like (see `calibration`), not at face value.
    """

    paper: ClassVar[str] = "2411.04975"
    longest: int = field(
        default=16, metadata={"minimum": 2, "maximum": 64, "description": "tokens compared in a match"}
    )
    tries: int = field(default=32, metadata={"minimum": 1, "maximum": 1024, "description": "occurrences looked at"})
    floor: float = field(
        default=0.02,
        metadata={"minimum": 0.0, "maximum": 1.0, "description": "least path probability of a node"},
    )
    depth_factor: float = field(
        default=4.0, metadata={"minimum": 0.25, "maximum": 64.0, "description": "levels per matched token"}
    )
    library: bool = field(default=True, metadata={"description": "match the tenant's earlier answers too"})


class Suffix(MergedDrafter):
    def __init__(self, memory: Memory, config: SuffixConfig) -> None:
        super().__init__(
            memory, rows=False, library=config.library, longest=config.longest, tries=config.tries,
            floor=config.floor, depth_factor=config.depth_factor,
        )  # fmt: skip
