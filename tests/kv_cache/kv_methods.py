"""The matrix that drives the parametrised tests: one row per method and the options it is tried with."""

from __future__ import annotations

from typing import Any

import pytest

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("razor_observed", {}),
    ("razor_keydiff", {}),
    ("razor_attention", {}),
    ("observed", {}),
    ("h2o", {}),
    ("h2o", {"recent_share": 0.0}),
    ("snapkv", {}),
    ("snapkv", {"queries": 3, "kernel": 4}),
    ("pyramid_kv", {"beta": 2.0}),
    ("keyformer", {}),
    ("keyformer", {"noise": 0.0, "tau_end": 0.5, "steps": 3}),
    ("expected_attention", {}),
    ("expected_attention", {"eps": 0.0, "future": 1}),
    ("keydiff", {}),
    ("knorm", {}),
    ("lagkv", {"lag": 4}),
    ("lagkv", {"lag": 5, "across": True}),
    ("lacache", {}),
    ("lacache", {"span": 3, "overlap": 1}),
    ("streaming_llm", {}),
    ("random", {}),
    ("stride", {}),
]

each_method = pytest.mark.parametrize(
    ("method", "options"),
    METHODS,
    ids=[f"{m}-{'-'.join(map(str, o.values())) or 'default'}" for m, o in METHODS],
)
