"""PIA's store of generated text: every stretch of it is a path in a trie, each node counting how often it was
taken."""

from __future__ import annotations

from collections.abc import Iterable

#: Measured on CPython 3.11 on texts of which a third repeats: the node, its dict and its slot in the parent's
#: dict.
NODE_BYTES = 260


class Node:
    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.count = 0.0
        self.children: dict[int, Node] | None = None  # made when needed: half of all nodes are leaves


class Cursor:
    """Where one text's open stretches stand: one node for each of the last `depth` starting points."""

    __slots__ = ("generation", "nodes")

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.generation = 0


class Trie:
    """Stretches of up to `depth` tokens, at most `limit` nodes. A child is never taken more often than its
    parent."""

    __slots__ = ("_generation", "depth", "limit", "nodes", "root")

    def __init__(self, depth: int = 10, limit: int = 65_536) -> None:
        self.depth = depth
        self.limit = limit
        self.nodes = 0
        self.root = Node()
        self._generation = 0

    def stream(self, cursor: Cursor, tokens: Iterable[int]) -> None:
        """Append generated tokens to the text behind `cursor`: each of them extends every open stretch."""
        if cursor.generation != self._generation:
            cursor.generation, cursor.nodes = self._generation, []
        for token in tokens:
            stretches = cursor.nodes[1:] if len(cursor.nodes) == self.depth else cursor.nodes
            stretches.append(self.root)
            grown = []
            for node in stretches:
                children = node.children
                if children is None:
                    children = node.children = {}
                child = children.get(token)
                if child is None:
                    child = children[token] = Node()
                    self.nodes += 1
                child.count += 1.0
                grown.append(child)
            cursor.nodes = grown
        if self.nodes > self.limit:
            self.shrink(0.75)

    def find(self, tokens: Iterable[int]) -> Node | None:
        node: Node | None = self.root
        for token in tokens:
            node = node.children.get(token) if node is not None and node.children is not None else None
        return node

    def squeeze(self) -> None:
        """Halve every count and drop what falls to one or below: old and rare stretches go, frequent ones
        fade."""
        self._generation += 1  # cursors of running texts may point into what is dropped
        self.nodes = 0
        open_nodes = [self.root]
        while open_nodes:
            node = open_nodes.pop()
            if not node.children:
                continue
            kept = {}
            for token, child in node.children.items():
                child.count /= 2
                if child.count > 1:
                    kept[token] = child
                    open_nodes.append(child)
            node.children = kept or None
            self.nodes += len(kept)

    def shrink(self, share: float) -> None:
        """Squeeze until at most `share` of the nodes is left."""
        target = int(self.nodes * share)
        while self.nodes > target:
            self.squeeze()

    def state_bytes(self) -> int:
        return self.nodes * NODE_BYTES
