"""One step's trees, laid out over the runner's flat rows. NumPy only; the runner and the attention backend share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thriftree.plugins.speculative.tree import DraftTree
from thriftree.plugins.speculative.walk import depths


@dataclass(frozen=True, slots=True)
class TreeStep:
    """Which of the step's rows are trees.

    A request's rows end with its root (the last committed token) and its draft nodes; rows before the root are prompt
    rows (their `depth` and `ancestors` mean nothing). `B` counts the requests of the batch, in batch order.
    """

    trees: Sequence[DraftTree]  # [B], empty where a request has no drafts
    first_row: NDArray[np.int64]  # [B] row of the root in the step
    root_position: NDArray[np.int64]  # [B] position of the root = KV entries before it
    depth: NDArray[np.int32]  # [rows of the step] 0 for a root
    ancestors: NDArray[np.int64]  # [rows of the step, W] bit sets over the request's own tree rows, itself included
    node_rows: NDArray[np.int64]  # step rows of all draft nodes (no roots)
    node_positions: NDArray[np.int64]  # their model positions, by depth

    @property
    def tree_rows(self) -> NDArray[np.int64]:
        """[B] rows of each request's tree, its root included."""
        return np.array([len(tree) + 1 for tree in self.trees], dtype=np.int64)


def ancestor_bits(tree: DraftTree, words: int) -> NDArray[np.int64]:
    """``[nodes + 1, words]``: bit ``j`` of row ``i`` says that tree row ``j`` is row ``i`` or an ancestor of it."""
    bits = [1]
    for node, parent in enumerate(tree.parents):
        bits.append(bits[parent + 1] | (1 << (node + 1)))
    low = np.array([[bit >> (64 * word) & (2**64 - 1) for word in range(words)] for bit in bits], dtype=np.uint64)
    return low.view(np.int64)


def plan_step(trees: Sequence[DraftTree], computed: NDArray[np.int32], scheduled: NDArray[np.int32]) -> TreeStep:
    """Lay out `trees` (``[B]``) over a step with ``scheduled[b]`` rows of request ``b``, ``computed[b]`` before it."""
    nodes = np.array([len(tree) for tree in trees], dtype=np.int64)
    first_row = np.cumsum(scheduled, dtype=np.int64) - nodes - 1
    root_position = computed.astype(np.int64) + scheduled - nodes - 1
    words = int(nodes.max()) // 64 + 1
    total = int(scheduled.sum())
    depth = np.zeros(total, dtype=np.int32)
    ancestors = np.zeros((total, words), dtype=np.int64)
    rows: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    for b, tree in enumerate(trees):
        levels = depths(tree)
        first = int(first_row[b])
        ancestors[first : first + len(levels) + 1] = ancestor_bits(tree, words)
        if levels:
            depth[first + 1 : first + len(levels) + 1] = levels
            rows.append(first + 1 + np.arange(len(levels)))
            positions.append(root_position[b] + np.array(levels, dtype=np.int64))
    empty = np.empty(0, dtype=np.int64)
    return TreeStep(
        trees=trees,
        first_row=first_row,
        root_position=root_position,
        depth=depth,
        ancestors=ancestors,
        node_rows=np.concatenate(rows) if rows else empty,
        node_positions=np.concatenate(positions) if positions else empty,
    )
