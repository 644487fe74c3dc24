"""How a request's contract reaches the engine client and how the counts come back. No vLLM in here.

The gateway sets `CURRENT` for the task that runs vLLM's handler; `ThriftAsyncLLM` reads it when the handler adds a
request (whatever the route), and adds to its `report` as outputs arrive. So bodies pass through untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

#: Key of our part in `SamplingParams.extra_args` (in a stock server: the request's `vllm_xargs`).
EXTRA_ARGS_KEY = "thriftree"
DEFAULT_TENANT = "default"


@dataclass(slots=True)
class Report:
    """What was counted in the engine for one HTTP request, summed over its choices."""

    steps: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    method: str | None = None
    exact: bool = True
    kv_method: str | None = None
    kv_seen: int = 0  # tokens per layer and head that were cached at some time, and of those the ones still there
    kv_kept: int = 0
    kv_dropped: int = 0
    kv_blocks_freed: int = 0
    vision_method: str | None = None
    vision_seen: int = 0  # tokens of the request's images before pruning, and of those the ones that the model got
    vision_kept: int = 0
    late_layer: int | None = None  # the first that visual tokens were missing in; None: nobody asked, or no images
    late_method: str | None = None
    late_seen: int = 0  # visual tokens of the layers before it, and of those the ones that went on
    late_kept: int = 0

    def count_kv(self, seen: int, kept: int, dropped: int, freed: int) -> None:
        """Add what one choice's cache has come to: tokens per layer and head, and blocks back in the pool.

        Called once per choice with its final figures, or several times with what came in addition.
        """
        self.kv_seen += seen
        self.kv_kept += kept
        self.kv_dropped += dropped
        self.kv_blocks_freed += freed
        if dropped:
            self.exact = False

    def count_vision(self, method: str | None, seen: int, kept: int) -> None:
        """Add one image: tokens before pruning and after; `method`: None where all stay."""
        self.vision_seen += seen
        self.vision_kept += kept
        self.vision_method = method or self.vision_method
        if kept < seen:
            self.exact = False

    def count_late(self, layer: int, method: str, seen: int, kept: int) -> None:
        """Add one choice: visual tokens before layer `layer`, and of those the ones that it and later ones had."""
        self.late_layer, self.late_method = layer, method
        self.late_seen += seen
        self.late_kept += kept
        if kept < seen:
            self.exact = False


@dataclass(slots=True)
class RequestContract:
    """A resolved `thrift` object, keys optional: ``{"speculation": "off" | {...}, "kv": ..., "vision": ...}``.

    ``speculation``: ``{"method": str, "max_nodes": int, ...own}``. ``kv``: ``{"method": str, "budget": int or
    "keep": float, "sinks": int, "recent": int, "defer": bool, "per_head": bool, ...own}`` (`kv_cache.request`).
    ``vision``: ``{"method": str, "keep": float or "keep_tokens": int, maybe "late": {"keep": float, "method": str},
    ...own}`` (`vision.request`).
    """

    thrift: dict[str, Any] = field(default_factory=dict)
    tenant: str = DEFAULT_TENANT
    max_visual_tokens: int | None = None  # of all its images and videos; None: no cap
    report: Report = field(default_factory=Report)
    unsent: list[Callable[[], None]] = field(default_factory=list)  # what to undo if the engine never gets the request

    def close(self) -> None:
        """The request is over, whether or not the engine has heard of it."""
        while self.unsent:
            self.unsent.pop()()


CURRENT: ContextVar[RequestContract | None] = ContextVar("thriftree_contract", default=None)
