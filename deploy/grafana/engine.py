"""vLLM's own view: latency by phase, batch, KV cache, prefix cache, preemptions."""

from __future__ import annotations

from panels import Dashboard, Panel, Query, Row, Variable

_CHOSEN = '{instance=~"$instance",model_name=~"$model_name"}'


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}{_CHOSEN}[$__rate_interval]))"


def _quantiles(name: str) -> tuple[Query, ...]:
    inner = _rate(f"{name}_bucket", "le")
    return tuple(Query(f"histogram_quantile({q}, {inner})", f"p{round(q * 100)}") for q in (0.5, 0.9, 0.99))


def _mean(name: str, legend: str) -> Query:
    return Query(f"{_rate(f'{name}_sum', 'instance')} / {_rate(f'{name}_count', 'instance')}", legend)


_LATENCY = Row(
    "Latency",
    (
        Panel(
            "Time to first token",
            "From arrival in the engine; the gateway's queue is not in it",
            "s",
            _quantiles("vllm:time_to_first_token_seconds"),
        ),
        Panel(
            "Between outputs",
            "Of one request. With speculation an output carries several tokens",
            "s",
            _quantiles("vllm:inter_token_latency_seconds"),
        ),
        Panel(
            "Where the time goes",
            "Mean of finished requests: waiting in the engine, reading the prompt, writing the answer",
            "s",
            (
                _mean("vllm:request_queue_time_seconds", "waiting {{instance}}"),
                _mean("vllm:request_prefill_time_seconds", "prompt {{instance}}"),
                _mean("vllm:request_decode_time_seconds", "answer {{instance}}"),
            ),
        ),
    ),
)

_BATCH = Row(
    "Batch",
    (
        Panel(
            "Requests in the engine",
            "Running, and held back for want of KV blocks or batch room",
            "none",
            (
                Query(f"sum by (instance) (vllm:num_requests_running{_CHOSEN})", "running {{instance}}"),
                Query(f"sum by (instance) (vllm:num_requests_waiting{_CHOSEN})", "waiting {{instance}}"),
            ),
        ),
        Panel(
            "Tokens",
            "A second, as they are processed",
            "short",
            (
                Query(_rate("vllm:generation_tokens_total", "instance"), "generated {{instance}}"),
                Query(_rate("vllm:prompt_tokens_total", "instance"), "prompt {{instance}}"),
            ),
        ),
        Panel(
            "Steps and tokens per step",
            "Of the whole batch: how often the engine steps in a second, and how many tokens a step carries",
            "short",
            (
                Query(_rate("vllm:iteration_tokens_total_count", "instance"), "steps {{instance}}"),
                _mean("vllm:iteration_tokens_total", "tokens in a step {{instance}}"),
            ),
        ),
        Panel(
            "Finished requests",
            "A second, by reason. `abort`: the client left or a deadline passed",
            "reqps",
            (Query(_rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),),
            stacked=True,
        ),
    ),
)

_CACHE = Row(
    "KV cache",
    (
        Panel(
            "KV cache in use",
            "Share of its blocks. Above 95 % for ten minutes there is an alert",
            "percentunit",
            (Query(f"vllm:kv_cache_usage_perc{_CHOSEN}", "{{instance}} {{engine}}"),),
            steps=((0.95, "red"),),
            most=1,
        ),
        Panel(
            "Prefix cache hits",
            "Share of prompt tokens that were there already",
            "percentunit",
            (
                Query(
                    f"{_rate('vllm:prefix_cache_hits_total', 'instance')}"
                    f" / {_rate('vllm:prefix_cache_queries_total', 'instance')}",
                    "{{instance}}",
                ),
            ),
            most=1,
        ),
        Panel(
            "Preemptions",
            "A second: running requests that lost their blocks and are computed again. 0 is right",
            "short",
            (Query(_rate("vllm:num_preemptions_total", "instance"), "{{instance}}"),),
            steps=((0.1, "red"),),
        ),
    ),
)

ENGINE = Dashboard(
    "thriftree-engine",
    "thriftree: engine",
    "vLLM's own metrics: latency, batch, KV cache",
    (_LATENCY, _BATCH, _CACHE),
    (Variable("instance", "vllm:num_requests_running"), Variable("model_name", "vllm:num_requests_running")),
)
