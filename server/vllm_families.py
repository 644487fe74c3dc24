"""Those of vLLM's metrics that our dashboards and alert rules read. A live test compares them with what it exports."""

from __future__ import annotations

_OWN = ("model_name", "engine")

#: name as in expressions, type, labels, meaning
VLLM: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("vllm:num_requests_running", "gauge", _OWN, "Requests in the engine's running batch"),
    ("vllm:num_requests_waiting", "gauge", _OWN, "Requests that the engine holds back"),
    ("vllm:kv_cache_usage_perc", "gauge", _OWN, "Share of KV-cache blocks in use, 0 to 1"),
    ("vllm:prefix_cache_queries_total", "counter", _OWN, "Prompt tokens looked up in the prefix cache"),
    ("vllm:prefix_cache_hits_total", "counter", _OWN, "Prompt tokens found there"),
    ("vllm:num_preemptions_total", "counter", _OWN, "Running requests put back for want of KV blocks"),
    ("vllm:prompt_tokens_total", "counter", _OWN, "Prompt tokens processed"),
    ("vllm:generation_tokens_total", "counter", _OWN, "Tokens generated; grows with every step"),
    ("vllm:request_success_total", "counter", (*_OWN, "finished_reason"), "Finished requests by reason"),
    ("vllm:time_to_first_token_seconds", "histogram", _OWN, "From arrival in the engine to the first token"),
    ("vllm:inter_token_latency_seconds", "histogram", _OWN, "Between two outputs of one request"),
    ("vllm:request_queue_time_seconds", "histogram", _OWN, "In the engine's waiting queue"),
    ("vllm:request_prefill_time_seconds", "histogram", _OWN, "From scheduled to the first token"),
    ("vllm:request_decode_time_seconds", "histogram", _OWN, "From the first token to the last"),
    ("vllm:iteration_tokens_total", "histogram", _OWN, "Tokens of one engine step, prompt and generated"),
)
