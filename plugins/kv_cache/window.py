"""How much of a request stays cached, as a pure function of its length: scheduler and worker work it out apart.

A compressed request's blocks form a window over the trailing positions, as in a sliding-window layer, except that the
window's CONTENT is curated: survivors of a block that leaves are moved into the places of dropped rows in blocks that
stay. `start` says where the window begins; blocks before it go back to the pool.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """The window of one request in one group of layers."""

    budget: int  # rows that every compressed head keeps, at least
    block: int  # tokens of a block
    prompt: int
    defer: bool = True  # nothing leaves before the prompt is complete
    full: int = 0  # of `heads`, heads that keep everything; their rows live in places that the others give up
    heads: int = 1

    def start(self, length: int) -> int:
        """First position of the window (a multiple of the block) once `length` tokens are cached."""
        if length <= self.budget or (self.defer and length < self.prompt):
            return 0
        gone = (length - self.budget) // self.block  # blocks that a compressed head gives up
        return gone * (self.heads - self.full) // self.heads * self.block

    def next_event(self, length: int) -> int | None:
        """The least length above `length` at which the window begins later than now; None: never again."""
        if self.full >= self.heads:
            return None
        pages = self.start(length) // self.block + 1
        gone = -(-pages * self.heads // (self.heads - self.full))
        due = self.budget + gone * self.block
        return max(due, self.prompt, length + 1) if self.defer else max(due, length + 1)

    def publishable(self) -> int:
        """Tokens at the front whose blocks are never rewritten before they are freed: other requests may share them.

        Survivors are only ever moved into blocks that stay, so what lies before the first window start is what any
        request with these tokens would have computed.
        """
        return self.start(self.prompt) if self.defer else 0
