"""The matrix that drives the parametrised tests: one row per method and the options it is tried with."""

from __future__ import annotations

from typing import Any

import pytest

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("auto", {}),
    ("auto", {"library": False, "longest": 4, "tries": 2}),
    ("token_recycling", {}),
    ("token_recycling", {"pairs": False, "shape": "2.2.2"}),
    ("token_recycling", {"update": "accepted", "k": 3}),
    ("trie_lookahead", {}),
    ("trie_lookahead", {"query_length": 1, "output_weight": 0.5}),
    ("suffix", {}),
    ("suffix", {"library": False, "depth_factor": 0.5, "floor": 0.0}),
]

each_method = pytest.mark.parametrize(
    ("method", "options"),
    METHODS,
    ids=[f"{m}-{'-'.join(map(str, o.values())) or 'default'}" for m, o in METHODS],
)
