"""The figures of the status page: what is counted, and what the requests under way have counted so far."""

from __future__ import annotations

from importlib.metadata import version
from time import monotonic
from typing import Any

from thriftree.server.metrics import Metrics
from thriftree.server.state import GatewayState


class Counts:
    """One per gateway; `now` costs some 100 us."""

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._begun = monotonic()
        self._version = version("thriftree")

    def now(self) -> dict[str, Any]:
        """The body of ``GET /status.json``; `totals` only ever grow."""
        can, metrics = self._state.capabilities, self._state.metrics
        return {
            "phase": self._state.phase,
            "version": self._version,
            "uptime_seconds": round(monotonic() - self._begun, 3),
            "speculation": {"method": can.method, "max_nodes": can.max_nodes} if can.speculation else None,
            "requests": {"running": int(_sum(metrics.running)), "waiting": int(_sum(metrics.queue_depth))},
            "totals": totals(metrics),
        }


def totals(metrics: Metrics) -> dict[str, int]:
    """Tokens and steps since the start, those of unfinished answers included.

    `generated_tokens` are all; the others are of answers whose steps were counted (an engine elsewhere may not say).
    """
    found = {
        "generated_tokens": _sum(metrics.tenant_tokens, kind="completion"),
        "completion_tokens": _sum(metrics.completion_tokens),
        "steps": _sum(metrics.steps),
        "drafted": _sum(metrics.draft_tokens),
        "accepted": _sum(metrics.accepted_tokens),
        "kv_dropped": _sum(metrics.kv_tokens_dropped),
    }
    for report in metrics.answering.values():
        found["generated_tokens"] += report.completion_tokens
        found["completion_tokens"] += report.completion_tokens
        found["steps"] += report.steps
        if report.method is not None:
            found["drafted"] += report.drafted
            found["accepted"] += report.accepted
        found["kv_dropped"] += report.kv_dropped
    return {name: int(value) for name, value in found.items()}


def _sum(metric: Any, **labels: str) -> float:
    """Over all label sets that have these labels."""
    samples = [sample for family in metric.collect() for sample in family.samples]
    counted = [sample for sample in samples if not sample.name.endswith("_created")]
    return float(sum(sample.value for sample in counted if labels.items() <= sample.labels.items()))
