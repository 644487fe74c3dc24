"""Best-first trees out of several sources: every candidate has a measured probability, a node's value is its
path's.

For each node the candidates are the continuations of the longest suffix match (in the request's own text,
then in the tenant's earlier ones) and the target's own top tokens recorded for the last two tokens, else for
the last one. What the sources say about a candidate selects a calibration cell; the cell's probability is how
often such a candidate was right. `emit` tells which candidates were, so the cells keep learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.calibration import (
    LENGTH_CLASS,
    LIBRARY_SUFFIX,
    NO_ROW,
    NO_SUFFIX,
    OTHER_ROW,
    OTHER_SUFFIX,
    OWN_SUFFIX,
    PAIR_ROW,
    ROW_CLASSES,
    SHARES,
    SINGLE_ROW,
    share_class,
)
from thriftree.plugins.speculative.memory import Memory, TenantMemory
from thriftree.plugins.speculative.text import Text
from thriftree.plugins.speculative.tree import ROOT, DraftTree

_LONGEST_CLASS = len(LENGTH_CLASS) - 1
#: Certainty would make a path's value stop falling.
_CEILING = 0.995
_probability = itemgetter(0)


class Candidate(NamedTuple):
    probability: float
    token: int
    cell: int
    own: list[int]
    library: list[int]


@dataclass(slots=True)
class _Request:
    memory: TenantMemory
    text: Text
    prompt_tokens: int
    expanded: dict[int, list[Candidate]] = field(default_factory=dict)
    tree: DraftTree = field(default_factory=DraftTree)


class MergedDrafter(Drafter):
    """The machine behind `suffix` and `auto`; they differ in the sources that they switch on."""

    def __init__(
        self,
        memory: Memory,
        *,
        rows: bool,
        library: bool,
        longest: int,
        tries: int,
        floor: float,
        depth_factor: float = 0.0,
    ) -> None:
        self._memory = memory
        self._use_rows = rows
        self._use_library = library
        self._longest = longest
        self._tries = tries
        self._floor = floor
        self._depth_factor = depth_factor
        self._requests: dict[str, _Request] = {}
        self._live_bytes = 0

    def start(self, request: str, tenant: str, prompt: Sequence[int]) -> None:
        self.finish(request)
        memory = self._memory.enter(tenant)
        window = self._memory.window(len(prompt))
        text = Text()
        text.extend(prompt[len(prompt) - window :])
        self._requests[request] = _Request(memory, text, len(text))
        self._hold(text.state_bytes())

    def observe(self, request: str, pairs: Sequence[tuple[int, int]], rows: NDArray[np.int32]) -> None:
        state = self._requests.get(request)
        if state is not None and self._use_rows:
            state.memory.rows.write_verified(pairs, rows, prompt=len(state.text) == state.prompt_tokens)

    def unseen(self, request: str, pairs: Sequence[tuple[int, int]]) -> list[int]:
        """None: all prompt rows together were worth 1 % of a merged tree's tokens (see docs/lab.md), and each costs a
        row of the LM head."""
        return []

    def emit(self, request: str, tokens: Sequence[int]) -> None:
        state = self._requests.get(request)
        if state is None or not tokens:
            return
        if state.expanded:
            self._learn(state, tokens)
        before = state.text.state_bytes()
        state.text.extend(tokens)
        self._hold(state.text.state_bytes() - before)
        self._memory.tick()

    def finish(self, request: str) -> None:
        state = self._requests.pop(request, None)
        if state is None:
            return
        self._hold(-state.text.state_bytes())
        if self._use_library:
            state.memory.library.add(state.text.tokens[state.prompt_tokens :])
        self._memory.leave(state.memory)

    def state_bytes(self) -> int:
        return self._live_bytes

    def _hold(self, size: int) -> None:
        self._live_bytes += size
        self._memory.live_bytes += size

    @staticmethod
    def _learn(state: _Request, tokens: Sequence[int]) -> None:
        """Score every candidate that was looked at on the emitted path, in the tree or not."""
        learn = state.memory.calibration.learn
        children = {key: i for i, key in enumerate(zip(state.tree.parents, state.tree.tokens, strict=True))}
        node = ROOT
        for token in tokens:
            for candidate in state.expanded.get(node, ()):
                learn(candidate.cell, candidate.token == token)
            node = children.get((node, token), -2)
            if node < 0:
                break
        state.expanded = {}

    def propose(self, request: str, max_nodes: int, max_depth: int) -> DraftTree:
        state = self._requests.get(request)
        if state is None or max_nodes <= 0 or max_depth <= 0 or not state.text.tokens:
            return DraftTree()
        text = state.text.tokens
        own_length, own = state.text.own_matches(self._longest, self._tries)
        library_length, library, library_text = 0, list[int](), text
        if self._use_library and len(state.memory.library):
            library_length, library, library_text = state.memory.library.matches(
                text[-self._longest :], self._longest, self._tries
            )
            if library_length <= own_length:
                library = []
        if self._depth_factor:
            max_depth = min(max_depth, int(max(own_length, library_length) * self._depth_factor) or 1)

        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []
        expanded: dict[int, list[Candidate]] = {}
        # Only the best open sibling of each family is in the heap: (-value, tie, parent, its value, family,
        # place, depth, token before).
        heap: list[tuple[float, int, int, float, list[Candidate], int, int, int]] = []
        floor, tie = self._floor, 0
        node, value, depth = ROOT, 1.0, 0
        before, token = (text[-2] if len(text) > 1 else ROOT), text[-1]
        while True:
            if depth < max_depth:
                family = self._candidates(
                    state.memory, before, token, text, own, own_length + depth, library_text, library,
                    library_length + depth,
                )  # fmt: skip
                if family:
                    expanded[node] = family
                    top = value * family[0].probability
                    if top >= floor:
                        tie += 1
                        heappush(heap, (-top, tie, node, value, family, 0, depth, token))
            if not heap:
                break
            negative, _, parent, parent_value, family, place, depth, before = heappop(heap)
            _, token, _, own, library = family[place]
            node, value = len(tokens), -negative
            tokens.append(token)
            parents.append(parent)
            values.append(value)
            if node + 1 >= max_nodes:
                break
            place += 1
            if place < len(family):
                top = parent_value * family[place].probability
                if top >= floor:
                    tie += 1
                    heappush(heap, (-top, tie, parent, parent_value, family, place, depth, before))
            depth += 1
        state.expanded = expanded
        state.tree = DraftTree(tokens, parents, values)
        return state.tree

    def _candidates(
        self, memory: TenantMemory, before: int, token: int, text: list[int], own: list[int], own_length: int,
        library_text: list[int], library: list[int], library_length: int,
    ) -> list[Candidate]:  # fmt: skip
        """The children that any source proposes after `token`, most probable first."""
        probability = memory.calibration.probability
        found: dict[int, tuple[int, list[int], list[int]]] = {}
        if own:
            base = OWN_SUFFIX + LENGTH_CLASS[min(own_length, _LONGEST_CLASS)] * SHARES
            for continuation, places, suffix in _continuations(text, own, base):
                found[continuation] = (suffix, places, _NOWHERE)
        if library:
            base = LIBRARY_SUFFIX + LENGTH_CLASS[min(library_length, _LONGEST_CLASS)] * SHARES
            for continuation, places, suffix in _continuations(library_text, library, base):
                mine = found.get(continuation)
                found[continuation] = (suffix, mine[1] if mine else _NOWHERE, places)
        row: tuple[int, ...] = ()
        rank_cell = PAIR_ROW
        if self._use_rows:
            rows = memory.rows
            row = rows.two.get(before << 32 | token)
            if not row:
                row, rank_cell = rows.one.get(token), SINGLE_ROW
        out: list[Candidate] = []
        other = (OTHER_SUFFIX if found else NO_SUFFIX) * ROW_CLASSES
        for candidate in row[:8]:
            if candidate >= 0:
                mine = found.pop(candidate, None)
                if mine is None:
                    cell = other + rank_cell
                    out.append(Candidate(probability[cell], candidate, cell, _NOWHERE, _NOWHERE))
                else:
                    cell = mine[0] * ROW_CLASSES + rank_cell
                    out.append(Candidate(min(probability[cell], _CEILING), candidate, cell, mine[1], mine[2]))
            rank_cell += 1
        row_cell = OTHER_ROW if row else NO_ROW
        for candidate, (suffix, own_places, library_places) in found.items():
            cell = suffix * ROW_CLASSES + row_cell
            out.append(Candidate(min(probability[cell], _CEILING), candidate, cell, own_places, library_places))
        out.sort(key=_probability, reverse=True)
        return out


_NOWHERE: list[int] = []


def _continuations(text: list[int], places: list[int], base: int) -> list[tuple[int, list[int], int]]:
    """What follows at `places`, most recent first: token, the places after it, its suffix cell."""
    size = len(text)
    if len(places) == 1:
        at = places[0]
        return [(text[at], [at + 1], base)] if at < size and text[at] >= 0 else []
    groups: dict[int, list[int]] = {}
    total = 0
    latest = -1
    for at in places:
        if at < size:
            token = text[at]
            if token < 0:
                continue
            if not total:
                latest = token
            total += 1
            if token in groups:
                groups[token].append(at + 1)
            else:
                groups[token] = [at + 1]
    return [(t, after, base + share_class(len(after), total, t == latest)) for t, after in groups.items()]
