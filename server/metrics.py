"""The gateway's metrics, in a registry of their own; vLLM's are appended when they are read."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEPS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16)


class Metrics:
    """One object per gateway. Children are bound once per label set: `inc` on a bound child is a tenth of the cost."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._bound: dict[tuple[Any, ...], Any] = {}
        self.answering: dict[int, Any] = {}  # reports of answers under way, by id
        made: dict[str, Any] = {"registry": self.registry, "namespace": "thriftree"}
        self.requests = Counter("requests", "Answered requests", ["route", "status", "tenant"], **made)
        self.request_seconds = Histogram(
            "request_seconds", "From the first byte in to the last byte out", ["route"], buckets=_SECONDS, **made
        )
        self.first_chunk_seconds = Histogram(
            "time_to_first_chunk_seconds",
            "From the first byte in to the first chunk of a stream",
            buckets=_SECONDS,
            **made,
        )
        self.quota_store_errors = Counter(
            "quota_store_errors", "Operations of the quota store that failed", ["store"], **made
        )
        self.rejected = Counter("rejected", "Requests refused before the engine", ["reason"], **made)
        self.queue_depth = Gauge("queue_depth", "Requests that wait for the engine", **made)
        self.queue_tokens = Gauge("queue_tokens", "Prompt and completion tokens that wait, as estimated", **made)
        self.running = Gauge("running", "Requests in the engine, as the gate counts them", **made)
        self.queue_wait_seconds = Histogram(
            "queue_wait_seconds", "Wait for the engine of requests that got in", buckets=_SECONDS, **made
        )
        self.deadline_exceeded = Counter("deadline_exceeded", "Requests ended by a deadline", ["deadline"], **made)
        self.draft_tokens = Counter("draft_tokens", "Tokens drafted and verified", ["method"], **made)
        self.accepted_tokens = Counter("accepted_tokens", "Drafted tokens accepted", ["method"], **made)
        self.steps = Counter("steps", "Forward passes that produced completion tokens", ["method"], **made)
        self.completion_tokens = Counter("completion_tokens", "Completion tokens of those passes", ["method"], **made)
        self.tokens_per_step = Histogram(
            "tokens_per_step", "Completion tokens per forward pass, per request", buckets=_STEPS, **made
        )
        self.tree_nodes = Gauge("tree_nodes", "Drafted nodes per step in the last finished request", **made)
        self.drafter_state_bytes = Gauge("drafter_state_bytes", "Memory of all drafters' state", **made)
        self.kv_tokens_dropped = Counter(
            "kv_tokens_dropped", "Tokens of requests that left the KV cache, per layer and head", ["method"], **made
        )
        self.kv_blocks_freed = Counter(
            "kv_blocks_freed", "KV-cache blocks that requests gave back before their end", ["method"], **made
        )
        self.visual_tokens_dropped = Counter(
            "visual_tokens_dropped", "Tokens of images that the language model did not get", ["method"], **made
        )
        self.visual_selection_failures = Counter(
            "visual_selection_failures",
            "Images whose method raised: evenly spaced rows were kept instead",
            ["method"],
            **made,
        )
        self.late_visual_tokens_dropped = Counter(
            "late_visual_tokens_dropped", "Visual tokens that the late layers did not get", ["method"], **made
        )
        self.ready = Gauge("ready", "1 while the server takes requests, 0 while it starts or drains", **made)
        self.tenant_tokens = Counter("tenant_tokens", "Tokens in and out", ["tenant", "kind"], **made)
        self.upstream_up = Gauge("upstream_up", "1 while the engine of --engine takes requests", ["engine"], **made)
        self.upstream_inflight = Gauge("upstream_inflight", "Requests at the engine", ["engine"], **made)
        self.upstream_requests = Counter(
            "upstream_requests", "Requests sent to the engine, retries included", ["engine", "outcome"], **made
        )
        self.upstream_retries = Counter("upstream_retries", "Attempts after which another was made", ["reason"], **made)
        self.upstream_breaker_open = Gauge(
            "upstream_breaker_open", "1 while the engine is left alone after failures", ["engine"], **made
        )

    def bound(self, metric: Any, *labels: str) -> Any:
        """``metric.labels(*labels)``, kept."""
        key = (metric, *labels)
        child = self._bound.get(key)
        if child is None:
            child = self._bound[key] = metric.labels(*labels)
        return child

    def count_report(self, report: Any, method: str | None, tenant: str) -> None:
        """What the engine counted for one finished (or aborted) request."""
        self.answering.pop(id(report), None)
        if report.prompt_tokens or report.completion_tokens:  # an engine elsewhere may count tokens but no steps
            self.bound(self.tenant_tokens, tenant, "prompt").inc(report.prompt_tokens)
            self.bound(self.tenant_tokens, tenant, "completion").inc(report.completion_tokens)
        if report.kv_method is not None:
            self.bound(self.kv_tokens_dropped, report.kv_method).inc(report.kv_dropped)
            self.bound(self.kv_blocks_freed, report.kv_method).inc(report.kv_blocks_freed)
        if report.vision_method is not None:
            self.bound(self.visual_tokens_dropped, report.vision_method).inc(report.vision_seen - report.vision_kept)
        if report.late_method is not None:
            self.bound(self.late_visual_tokens_dropped, report.late_method).inc(report.late_seen - report.late_kept)
        if not report.steps:
            return
        self.tokens_per_step.observe(report.completion_tokens / report.steps)
        self.bound(self.steps, method or "none").inc(report.steps)
        self.bound(self.completion_tokens, method or "none").inc(report.completion_tokens)
        if method is not None:
            self.tree_nodes.set(report.drafted / report.steps)
            self.bound(self.draft_tokens, method).inc(report.drafted)
            self.bound(self.accepted_tokens, method).inc(report.accepted)

    def render(self) -> bytes:
        """Prometheus text: ours, then vLLM's where it is loaded."""
        return generate_latest(self.registry) + _vllm_metrics()


def _vllm_metrics() -> bytes:
    import sys

    module = sys.modules.get("vllm.v1.metrics.prometheus")
    return generate_latest(module.get_prometheus_registry()) if module is not None else b""
