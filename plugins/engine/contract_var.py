"""How a request's contract reaches the engine client and how the counts come back. No vLLM in here.

The gateway sets `CURRENT` for the task that runs vLLM's handler; `ThriftAsyncLLM` reads it when the handler adds a
request (whatever the route), and adds to its `report` as outputs arrive. So bodies pass through untouched.
"""

from __future__ import annotations

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


@dataclass(slots=True)
class RequestContract:
    """A resolved `thrift` object: ``{"speculation": "off" | {"method": str, "max_nodes": int}}``, keys optional."""

    thrift: dict[str, Any] = field(default_factory=dict)
    tenant: str = DEFAULT_TENANT
    report: Report = field(default_factory=Report)


CURRENT: ContextVar[RequestContract | None] = ContextVar("thriftree_contract", default=None)
