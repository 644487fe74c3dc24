"""The service as its users see it: rate, errors and duration by tenant and route, the queue, refusals."""

from __future__ import annotations

from panels import Dashboard, Panel, Query, Row, Variable

_CHOSEN = 'instance=~"$instance",tenant=~"$tenant",route=~"$route"'
_REQUESTS = f"thriftree_requests_total{{{_CHOSEN}}}"
_FAILED = f'thriftree_requests_total{{{_CHOSEN},status=~"5.."}}'
_ROUTE = 'instance=~"$instance",route=~"$route"'
_HERE = '{instance=~"$instance"}'


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def _quantiles(histogram: str, labels: str) -> tuple[Query, ...]:
    inner = f"sum by (le) (rate({histogram}_bucket{{{labels}}}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({q}, {inner})", f"p{round(q * 100)}") for q in (0.5, 0.9, 0.99))


_GLANCE = Row(
    "At a glance",
    (
        Panel("Ready", "Servers that take requests now", "none", (Query(f"sum(thriftree_ready{_HERE})"),), "stat"),
        Panel(
            "Requests",
            "Answers a second, of the chosen tenants and routes",
            "reqps",
            (Query(f"sum(rate({_REQUESTS}[$__rate_interval]))"),),
            "stat",
        ),
        Panel(
            "Errors",
            "Share of 5xx. The alert for the error budget begins at 3 % over six hours, 7.2 % over one",
            "percentunit",
            (
                Query(
                    f"(sum(rate({_FAILED}[$__rate_interval])) or vector(0)) / sum(rate({_REQUESTS}[$__rate_interval]))"
                ),
            ),
            "stat",
            ((0.005, "orange"), (0.03, "red")),
        ),
        Panel("Running", "Requests in the engine", "none", (Query(f"sum(thriftree_running{_HERE})"),), "stat"),
        Panel(
            "Waiting",
            "Requests in the gateway's queue",
            "none",
            (Query(f"sum(thriftree_queue_depth{_HERE})"),),
            "stat",
            ((1, "orange"), (100, "red")),
        ),
        Panel(
            "Refused",
            "Requests a second that were refused before the engine",
            "reqps",
            (Query(f"sum(rate(thriftree_rejected_total{_HERE}[$__rate_interval])) or vector(0)"),),
            "stat",
            ((0.1, "orange"), (1, "red")),
        ),
    ),
)

_RATE = Row(
    "Rate and errors",
    (
        Panel(
            "By tenant", "Answers a second", "reqps", (Query(_rate(_REQUESTS, "tenant"), "{{tenant}}"),), stacked=True
        ),
        Panel("By route", "Answers a second", "reqps", (Query(_rate(_REQUESTS, "route"), "{{route}}"),), stacked=True),
        Panel(
            "By status",
            "Answers a second. 499: the client left; 429: over quota, or no room; 408: a deadline passed",
            "reqps",
            (Query(_rate(_REQUESTS, "status"), "{{status}}"),),
            stacked=True,
        ),
    ),
)

_DURATION = Row(
    "Duration",
    (
        Panel(
            "To the first chunk",
            "Of all streams: what a reader waits before text appears. The alert's bound is 5 s",
            "s",
            _quantiles("thriftree_time_to_first_chunk_seconds", 'instance=~"$instance"'),
            steps=((5, "red"),),
        ),
        Panel(
            "To the last byte",
            "Of the chosen routes, all tenants. Long answers take long: look at the first chunk for trouble",
            "s",
            _quantiles("thriftree_request_seconds", _ROUTE),
        ),
        Panel(
            "Median by route",
            "To the last byte",
            "s",
            (
                Query(
                    "histogram_quantile(0.5, sum by (route, le) "
                    f"(rate(thriftree_request_seconds_bucket{{{_ROUTE}}}[$__rate_interval])))",
                    "{{route}}",
                ),
            ),
        ),
    ),
)

_QUEUE = Row(
    "Queue",
    (
        Panel(
            "Running and waiting",
            "Requests in the engine, and those that wait for it",
            "none",
            (
                Query(f"sum(thriftree_running{_HERE})", "running"),
                Query(f"sum(thriftree_queue_depth{_HERE})", "waiting"),
            ),
        ),
        Panel(
            "Wait for the engine",
            "Of requests that were let in",
            "s",
            _quantiles("thriftree_queue_wait_seconds", 'instance=~"$instance"'),
        ),
        Panel(
            "Tokens that wait",
            "Prompt and completion tokens of the queue, as admission counts them",
            "short",
            (Query(f"sum by (instance) (thriftree_queue_tokens{_HERE})", "{{instance}}"),),
        ),
    ),
)

_REFUSED = Row(
    "Refusals",
    (
        Panel(
            "Refusals by reason",
            "Requests a second that never reached the engine; the reason is the answer's error code",
            "reqps",
            (Query(_rate(f"thriftree_rejected_total{_HERE}", "reason"), "{{reason}}"),),
            stacked=True,
        ),
        Panel(
            "Deadlines passed",
            "Requests a second that were ended by a deadline, by which",
            "reqps",
            (Query(_rate(f"thriftree_deadline_exceeded_total{_HERE}", "deadline"), "{{deadline}}"),),
            stacked=True,
        ),
    ),
)

_UPSTREAM = Row(
    "Engines elsewhere (--engine)",
    (
        Panel(
            "Engines up",
            "1: passes its health checks",
            "none",
            (Query(f"min by (engine) (thriftree_upstream_up{_HERE})", "{{engine}}"),),
        ),
        Panel(
            "Requests at the engine",
            "Sent and not yet answered whole",
            "none",
            (Query(f"sum by (engine) (thriftree_upstream_inflight{_HERE})", "{{engine}}"),),
            stacked=True,
        ),
        Panel(
            "Attempts by outcome",
            "A second, further attempts of one request included",
            "reqps",
            (Query(_rate(f"thriftree_upstream_requests_total{_HERE}", "outcome"), "{{outcome}}"),),
            stacked=True,
        ),
        Panel(
            "Further attempts",
            "A second, by what was wrong with the one before; and engines that are left alone after failures",
            "short",
            (
                Query(_rate(f"thriftree_upstream_retries_total{_HERE}", "reason"), "{{reason}}"),
                Query(f"sum(thriftree_upstream_breaker_open{_HERE})", "engines left alone"),
            ),
        ),
    ),
    closed=True,
)

_TOKENS = Row(
    "Tokens by tenant",
    (
        Panel(
            "Completion tokens",
            "A second, counted when a request ends",
            "short",
            (
                Query(
                    _rate(
                        'thriftree_tenant_tokens_total{instance=~"$instance",tenant=~"$tenant",kind="completion"}',
                        "tenant",
                    ),
                    "{{tenant}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Prompt tokens",
            "A second, counted when a request ends",
            "short",
            (
                Query(
                    _rate(
                        'thriftree_tenant_tokens_total{instance=~"$instance",tenant=~"$tenant",kind="prompt"}', "tenant"
                    ),
                    "{{tenant}}",
                ),
            ),
            stacked=True,
        ),
    ),
)

SERVICE = Dashboard(
    "thriftree-service",
    "thriftree: service",
    "Rate, errors and duration by tenant and route; the queue; refusals",
    (_GLANCE, _RATE, _DURATION, _QUEUE, _REFUSED, _TOKENS, _UPSTREAM),
    (
        Variable("instance", "thriftree_ready"),
        Variable("tenant", "thriftree_requests_total"),
        Variable("route", "thriftree_requests_total", "/v1/.*"),
    ),
)
