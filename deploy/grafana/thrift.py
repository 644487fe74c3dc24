"""What speculation and KV compression save, and what they cost."""

from __future__ import annotations

from panels import Dashboard, Panel, Query, Row, Variable

_CHOSEN = '{instance=~"$instance",method=~"$method"}'
_HERE = '{instance=~"$instance"}'


def _rate(name: str, by: str = "") -> str:
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({name}{_CHOSEN}[$__rate_interval]))"


_TOKENS, _STEPS = "thriftree_completion_tokens_total", "thriftree_steps_total"
_DRAFTED, _ACCEPTED = "thriftree_draft_tokens_total", "thriftree_accepted_tokens_total"

_GLANCE = Row(
    "At a glance",
    (
        Panel(
            "GPU steps saved",
            "Forward passes a second that were not needed: completion tokens - steps",
            "short",
            (Query(f"{_rate(_TOKENS)} - {_rate(_STEPS)}"),),
            "stat",
        ),
        Panel(
            "Share of steps saved",
            "Of the steps that one token per step would have taken",
            "percentunit",
            (Query(f"1 - {_rate(_STEPS)} / {_rate(_TOKENS)}"),),
            "stat",
        ),
        Panel(
            "Tokens per step",
            "1 is what a server without speculation does",
            "short",
            (Query(f"{_rate(_TOKENS)} / {_rate(_STEPS)}"),),
            "stat",
        ),
        Panel(
            "Steps saved in this range",
            "Completion tokens - steps, over the time shown",
            "short",
            (
                Query(
                    f"sum(increase({_TOKENS}{_CHOSEN}[$__range])) - sum(increase({_STEPS}{_CHOSEN}[$__range]))",
                ),
            ),
            "stat",
        ),
    ),
)

_SAVED = Row(
    "Saved",
    (
        Panel(
            "Tokens and steps",
            "A second. The gap between the two is what speculation saves",
            "short",
            (Query(_rate(_TOKENS), "completion tokens"), Query(_rate(_STEPS), "steps")),
        ),
        Panel(
            "Tokens per step by method",
            "`none`: requests without speculation, always 1",
            "short",
            (Query(f"{_rate(_TOKENS, 'method')} / {_rate(_STEPS, 'method')}", "{{method}}"),),
        ),
        Panel(
            "Tokens per step of requests",
            "Of all requests, each counted once; short answers are in the lower part",
            "short",
            tuple(
                Query(
                    f"clamp_min(histogram_quantile({q}, sum by (le) "
                    f"(rate(thriftree_tokens_per_step_bucket{_HERE}[$__rate_interval]))), 1)",
                    f"p{round(q * 100)}",
                )
                for q in (0.1, 0.5, 0.9)
            ),
        ),
    ),
)

_DRAFTS = Row(
    "Drafts",
    (
        Panel(
            "Acceptance by method",
            "Share of drafted tokens that were accepted. A tree tries several tokens for one place, so most must fall",
            "percentunit",
            (Query(f"{_rate(_ACCEPTED, 'method')} / {_rate(_DRAFTED, 'method')}", "{{method}}"),),
            most=1,
        ),
        Panel(
            "Drafted and accepted",
            "Tokens a second; drafted ones are what the steps carry in addition",
            "short",
            (Query(_rate(_DRAFTED), "drafted"), Query(_rate(_ACCEPTED), "accepted")),
        ),
        Panel(
            "Nodes per step",
            "Drafted per step in the last finished request: the width controller's choice. 0 under full load is right",
            "short",
            (Query(f"thriftree_tree_nodes{_HERE}", "{{instance}}"),),
        ),
        Panel(
            "Memory of the drafters",
            "Of all tenants together; --speculation-memory-mib bounds it",
            "bytes",
            (Query(f"thriftree_drafter_state_bytes{_HERE}", "{{instance}}"),),
        ),
    ),
)

_DROPPED, _FREED = "thriftree_kv_tokens_dropped_total", "thriftree_kv_blocks_freed_total"

_KV = Row(
    "KV cache",
    (
        Panel(
            "KV tokens dropped by method",
            "Tokens a second, per layer and head, that left the cache of requests with `thrift.kv`",
            "short",
            (Query(f"sum by (method) (rate({_DROPPED}{_HERE}[$__rate_interval]))", "{{method}}"),),
        ),
        Panel(
            "KV blocks freed by method",
            "Blocks a second that went back to the pool before their request ended: room for others",
            "short",
            (Query(f"sum by (method) (rate({_FREED}{_HERE}[$__rate_interval]))", "{{method}}"),),
        ),
        Panel(
            "Use of the KV cache",
            "Share of blocks in use. It falls where requests compress",
            "percentunit",
            (Query('vllm:kv_cache_usage_perc{instance=~"$instance"}', "{{instance}}"),),
            most=1,
        ),
    ),
)

_VISION = Row(
    "Images",
    (
        Panel(
            "Visual tokens dropped by method",
            "Tokens a second of images that the language model, or its late layers, did not get (`thrift.vision`)",
            "short",
            (
                Query(
                    f"sum by (method) (rate(thriftree_visual_tokens_dropped_total{_HERE}[$__rate_interval]))",
                    "{{method}}",
                ),
                Query(
                    f"sum by (method) (rate(thriftree_late_visual_tokens_dropped_total{_HERE}[$__rate_interval]))",
                    "{{method}}, late layers",
                ),
            ),
        ),
        Panel(
            "Images whose method raised",
            "They kept evenly spaced rows; the server's log has the error",
            "short",
            (
                Query(
                    f"sum by (method) (increase(thriftree_visual_selection_failures_total{_HERE}[$__rate_interval]))",
                    "{{method}}",
                ),
            ),
        ),
    ),
)

THRIFT = Dashboard(
    "thriftree-thrift",
    "thriftree: thrift",
    "Tokens per step, steps saved, acceptance by method, memory of the drafters, KV and visual tokens dropped",
    (_GLANCE, _SAVED, _DRAFTS, _KV, _VISION),
    (Variable("instance", "thriftree_ready"), Variable("method", "thriftree_steps_total")),
)
