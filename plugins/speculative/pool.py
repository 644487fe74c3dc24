"""All drafters of one engine: each request has its own method, all methods share each tenant's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thriftree.plugins.speculative import registry
from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.memory import DEFAULT_BUDGET, Memory
from thriftree.plugins.speculative.tree import DraftTree

_NOTHING = DraftTree()


class DrafterPool:
    """The drafters' calls, with the method chosen at `start`. Unknown requests are ignored everywhere."""

    def __init__(
        self,
        memory_bytes: int = DEFAULT_BUDGET,
        default: str = registry.DEFAULT_METHOD,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`options`: parameters by method, for requests that bring none of their own."""
        self.memory = Memory(memory_bytes)
        self.default = default
        self._options = dict(options or {})
        self._drafters: dict[Any, Drafter] = {}
        self._requests: dict[str, tuple[str, Drafter]] = {}
        for name in {default, *self._options}:
            self._drafter(name, None)  # a bad parameter is told at start-up

    def _drafter(self, method: str, options: Mapping[str, Any] | None) -> Drafter:
        options = self._options.get(method, {}) if options is None else options
        key = (method, registry.configure(method, options))
        drafter = self._drafters.get(key)
        if drafter is None:
            drafter = self._drafters[key] = registry.build(method, self.memory, options)
        return drafter

    def start(
        self,
        request: str,
        tenant: str,
        prompt: Sequence[int],
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """A request enters. ValueError names the field where method or options are not right."""
        self.finish(request)
        method = method or self.default
        drafter = self._drafter(method, options)
        self._requests[request] = (method, drafter)
        drafter.start(request, tenant, prompt)

    def observe(self, request: str, pairs: Sequence[tuple[int, int]], rows: NDArray[np.int32]) -> None:
        entry = self._requests.get(request)
        if entry is not None:
            entry[1].observe(request, pairs, rows)

    def emit(self, request: str, tokens: Sequence[int]) -> None:
        entry = self._requests.get(request)
        if entry is not None:
            entry[1].emit(request, tokens)

    def propose(self, request: str, max_nodes: int, max_depth: int) -> DraftTree:
        entry = self._requests.get(request)
        return entry[1].propose(request, max_nodes, max_depth) if entry is not None else _NOTHING

    def finish(self, request: str) -> None:
        entry = self._requests.pop(request, None)
        if entry is not None:
            entry[1].finish(request)

    def wants_rows(self, request: str | None = None) -> bool:
        """Whether this request's verified rows should come to `observe` (no name: whether any request's
        should)."""
        if request is None:
            return any(drafter.wants_rows for _, drafter in self._requests.values())
        entry = self._requests.get(request)
        return entry is not None and entry[1].wants_rows

    def unseen(self, request: str, pairs: Sequence[tuple[int, int]]) -> list[int]:
        entry = self._requests.get(request)
        return entry[1].unseen(request, pairs) if entry is not None else []

    def method(self, request: str) -> str | None:
        entry = self._requests.get(request)
        return entry[0] if entry is not None else None

    def __contains__(self, request: str) -> bool:
        return request in self._requests

    def __len__(self) -> int:
        return len(self._requests)

    def state_bytes(self) -> int:
        """Everything: tenants' stores and running requests."""
        return self.memory.state_bytes()
