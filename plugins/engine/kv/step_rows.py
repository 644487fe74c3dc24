"""What compression wants of a step while it runs: shifted tables, and queries of the rows that methods look at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata

from thriftree.plugins.engine.kv.ragged_step import RaggedStep


class Observer(Protocol):
    """Weighs a chunk's queries against the keys that are cached by then."""

    def __call__(self, layer: str, queries: Tensor) -> None: ...


@dataclass
class StepRows:
    """Of one step, shared by all layers."""

    starts: list[NDArray[np.int64]]  # [groups][requests] where each window begins, in tokens
    apart: list[NDArray[np.bool_]]  # [groups][requests] whose heads differ in length: not in the regular tables
    ragged: list[RaggedStep | None] = field(default_factory=list)  # [groups] attention of those
    capture: Tensor | None = None  # rows of the step whose queries are kept
    observers: list[tuple[slice, Observer]] = field(default_factory=list)  # rows of a chunk, and who weighs them
    captured: dict[str, Tensor] = field(default_factory=dict)  # layer -> [rows, heads, dim]

    def after_attention(self, layer: str, query: Tensor) -> None:
        """Called by every layer once its keys are in the cache and its attention is done."""
        if self.capture is not None:
            self.captured[layer] = query[self.capture]
        for rows, observer in self.observers:
            observer(layer, query[rows])

    def shifted(self, common: CommonAttentionMetadata, group: int, block: int) -> CommonAttentionMetadata:
        """The step seen from each window's start: a shorter table and a shorter context.

        Causal masks are counted from the end, so nothing else changes: the newest rows are where they were.
        """
        starts = self.starts[group]
        if not starts.any():
            return common
        skip = torch.from_numpy(starts)
        table = common.block_table_tensor
        columns = torch.arange(table.shape[1])[None, :] + (skip // block)[:, None]
        seq_lens = common.seq_lens - skip.to(common.seq_lens.dtype)
        changes: dict[str, Any] = {
            "block_table_tensor": table.gather(1, columns.clamp_(max=table.shape[1] - 1)),
            "seq_lens": seq_lens,
            "max_seq_len": int(seq_lens.max()),
        }
        return replace(common, **changes)
