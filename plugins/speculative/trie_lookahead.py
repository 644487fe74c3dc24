"""`trie_lookahead`: what prompts and answers said after the last two tokens, branches merged in a trie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import ClassVar

from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.memory import Memory, TenantMemory
from thriftree.plugins.speculative.text import Text
from thriftree.plugins.speculative.tree import ROOT, DraftTree
from thriftree.plugins.speculative.trie import Cursor, Node

#: What a continuation of the last token alone is worth beside those of the last two.
_SHORTER_QUERY = 0.3
#: Sightings' worth of doubt about any set of branches.
_UNEXPLAINED = 0.5
_OPEN_STRETCHES_BYTES = 300


@dataclass(frozen=True, slots=True)
class TrieLookaheadConfig:
    """Look the last tokens up in a trie of n-grams, draft its subtree: shared prefixes are verified once.

    Generated text of the tenant is streamed into the trie as it appears; the request's own prompt counts
    apart and first: a branch weighs ``(1 - output_weight) * prompt count + output_weight * output count``.
    The trie is squeezed when it is full (counts halve, rare branches go).

    Paper: Lookahead (PIA), arXiv 2312.12728, hierarchical multi-branch form. We depart from it in that a
    prompt's counts are read off the request's own text index instead of being added to the trie and taken out
    again (same counts, a tenth of the memory, nothing to restore when a request is cancelled), and that
    branches are drafted best-first by smoothed share, so that any prefix of the draft is a good tree.
    """

    paper: ClassVar[str] = "2312.12728"
    branch_length: int = field(
        default=8, metadata={"minimum": 1, "maximum": 32, "description": "deepest level that is drafted"}
    )
    query_length: int = field(default=2, metadata={"minimum": 1, "maximum": 2, "description": "tokens looked up"})
    output_weight: float = field(
        default=1e-4,
        metadata={"minimum": 0.0, "maximum": 1.0, "description": "weight of generated text's counts"},
    )
    tries: int = field(default=64, metadata={"minimum": 1, "maximum": 4096, "description": "prompt places looked at"})


@dataclass(slots=True)
class _Request:
    memory: TenantMemory
    prompt: Text
    cursor: Cursor
    context: list[int]


@dataclass(slots=True)
class _Place:
    """Where a node stands in its two sources."""

    prompt: list[int]
    trie: Node | None


class TrieLookahead(Drafter):
    def __init__(self, memory: Memory, config: TrieLookaheadConfig) -> None:
        self._memory = memory
        self._config = config
        self._requests: dict[str, _Request] = {}
        self._live_bytes = 0

    def start(self, request: str, tenant: str, prompt: Sequence[int]) -> None:
        self.finish(request)
        memory = self._memory.enter(tenant)
        window = self._memory.window(len(prompt))
        text, cursor = Text(), Cursor()
        text.extend(prompt[len(prompt) - window :])
        memory.trie.stream(cursor, ())
        self._requests[request] = _Request(memory, text, cursor, list(prompt[-2:]))
        self._hold(text.state_bytes() + _OPEN_STRETCHES_BYTES)

    def emit(self, request: str, tokens: Sequence[int]) -> None:
        state = self._requests.get(request)
        if state is not None and tokens:
            state.memory.trie.stream(state.cursor, tokens)
            state.context = [*state.context, *tokens][-2:]
            self._memory.tick()

    def propose(self, request: str, max_nodes: int, max_depth: int) -> DraftTree:
        state = self._requests.get(request)
        if state is None or max_nodes <= 0 or not state.context:
            return DraftTree()
        max_depth = min(max_depth, self._config.branch_length)
        tokens: list[int] = []
        parents: list[int] = []
        values: list[float] = []
        heap: list[tuple[float, int, int, int, int, _Place]] = []
        tie = 0
        rooted: set[int] = set()
        weight = 1.0
        for length in range(self._config.query_length, 0, -1):
            if len(state.context) >= length and max_depth > 0:
                for token, share, place in self._branches(state, self._root(state, length)):
                    if token not in rooted:
                        rooted.add(token)
                        tie += 1
                        heappush(heap, (-weight * share, tie, ROOT, token, 1, place))
            weight *= _SHORTER_QUERY
        while heap and len(tokens) < max_nodes:
            negative, _, parent, token, depth, place = heappop(heap)
            node = len(tokens)
            tokens.append(token)
            parents.append(parent)
            values.append(-negative)
            if depth < max_depth:
                for child, share, below in self._branches(state, place):
                    tie += 1
                    heappush(heap, (negative * share, tie, node, child, depth + 1, below))
        return DraftTree(tokens, parents, values)

    def _root(self, state: _Request, length: int) -> _Place:
        query = state.context[-length:]
        matched, places = state.prompt.matches(query, length, self._config.tries)
        return _Place(places if matched == length else [], state.memory.trie.find(query))

    def _branches(self, state: _Request, place: _Place) -> Iterable[tuple[int, float, _Place]]:
        """Children of a place with their smoothed share of its score, the best first."""
        text = state.prompt.tokens
        prompt: dict[int, list[int]] = {}
        for at in place.prompt:
            if at < len(text):
                prompt.setdefault(text[at], []).append(at + 1)
        trie = place.trie.children if place.trie is not None and place.trie.children else {}
        w = self._config.output_weight
        scores = {token: (1 - w) * len(after) for token, after in prompt.items()}
        for token, child in trie.items():
            scores[token] = scores.get(token, 0.0) + w * child.count
        # Some weight for what none of them explains: a branch seen once is no certainty.
        unit = _UNEXPLAINED * ((1 - w) if prompt else w)
        total = sum(scores.values()) + unit
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        return [(token, s / total, _Place(prompt.get(token, []), trie.get(token))) for token, s in ranked if s > 0]

    def finish(self, request: str) -> None:
        state = self._requests.pop(request, None)
        if state is not None:
            self._hold(-state.prompt.state_bytes() - _OPEN_STRETCHES_BYTES)
            self._memory.leave(state.memory)

    def state_bytes(self) -> int:
        return self._live_bytes

    def _hold(self, size: int) -> None:
        self._live_bytes += size
        self._memory.live_bytes += size
