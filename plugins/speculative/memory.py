"""What is remembered beyond a request, by tenant and shared between the methods; one budget for
everything."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from thriftree.plugins.speculative.calibration import Calibration
from thriftree.plugins.speculative.rows import Rows
from thriftree.plugins.speculative.text import TOKEN_BYTES, Library
from thriftree.plugins.speculative.trie import Trie

DEFAULT_BUDGET = 64 << 20
_TICKS = 16


class Store(Protocol):
    """A bounded part of a tenant's memory."""

    def state_bytes(self) -> int: ...

    def shrink(self, share: float) -> None:
        """Forget the oldest until about `share` of the entries is left."""


class TenantMemory:
    """One tenant's stores. Methods that read the same store learn from each other."""

    __slots__ = ("calibration", "library", "live", "rows", "trie")

    def __init__(self, calibration: Calibration) -> None:
        self.rows = Rows()
        self.library = Library()
        self.trie = Trie()
        self.calibration = calibration
        self.live = 0

    @property
    def stores(self) -> tuple[Store, ...]:
        return self.rows, self.library, self.trie

    def state_bytes(self) -> int:
        return sum(store.state_bytes() for store in self.stores) + self.calibration.state_bytes()


class Memory:
    """All tenants, least recently used first. Drafters enter and leave with each request."""

    def __init__(self, budget: int = DEFAULT_BUDGET, calibration: Callable[[], Calibration] = Calibration) -> None:
        self.budget = budget
        self._calibration = calibration
        #: Bytes of the running requests' own state, kept up to date by the drafters.
        self.live_bytes = 0
        self._ticks = 0
        self._tenants: OrderedDict[str, TenantMemory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tenants)

    def enter(self, tenant: str) -> TenantMemory:
        """A request of `tenant` starts: its memory stays at least until the matching `leave`."""
        memory = self._tenants.get(tenant)
        if memory is None:
            memory = self._tenants[tenant] = TenantMemory(self._calibration())
        self._tenants.move_to_end(tenant)
        memory.live += 1
        self.trim()
        return memory

    def tick(self) -> None:
        """Something was stored; looks at the budget now and then (stores are bounded one by one anyway)."""
        self._ticks += 1
        if not self._ticks % _TICKS:
            self.trim()

    def leave(self, memory: TenantMemory) -> None:
        memory.live -= 1
        self.trim()

    def window(self, tokens: int) -> int:
        """How many of a new request's last `tokens` may be indexed: running requests hold half the budget at
        most."""
        return min(tokens, max((self.budget // 2 - self.live_bytes) // TOKEN_BYTES, 0))

    def state_bytes(self) -> int:
        return self.live_bytes + sum(memory.state_bytes() for memory in self._tenants.values())

    def trim(self) -> None:
        """Back into the budget: idle tenants go first, oldest first; then the stores of the rest lose their
        oldest."""
        excess = self.state_bytes() - self.budget
        for name in [n for n, memory in self._tenants.items() if not memory.live]:
            if excess <= 0:
                return
            if name == next(reversed(self._tenants)):
                break  # the tenant that is in use, between two requests: shrink it instead
            excess -= self._tenants.pop(name).state_bytes()
        for memory in list(self._tenants.values()):
            for _ in range(8):
                if excess <= 0:
                    return
                before = memory.state_bytes()
                for store in memory.stores:
                    store.shrink(0.75)
                excess -= before - memory.state_bytes()
