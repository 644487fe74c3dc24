"""The matrix that drives the parametrised tests: one row per method and the options it is tried with."""

from __future__ import annotations

from typing import Any

import pytest

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("divprune", {}),
    ("dpp", {}),
    ("dpp", {"relevance": "attention"}),
    ("todre", {}),
    ("hiprune", {}),
    ("hiprune", {"alpha": 1.0}),
    ("hiprune", {"alpha": 0.0, "object_layer": -2}),
    ("fopru", {}),
    ("fopru", {"strategy": "row"}),
    ("globalcom2", {}),
    ("globalcom2", {"temperature": 0.01}),
    ("visionzip", {}),
    ("visionzip", {"contextual": 1.0}),
    ("vflowopt", {}),
    ("vflowopt", {"cell": 0.25, "threshold": 2.0}),
    ("recoverable", {}),
    ("recoverable", {"visual": 0.0, "textual": 0.0, "neighbours": 3}),
    ("token_corr_like", {}),
    ("aim", {}),
    ("aim", {"per_round": 0.1}),
    ("tome", {}),
    ("pitome", {}),
    ("pitome", {"per_round": 0.5, "margin": 0.0}),
    ("avgpool", {}),
    ("random", {}),
    ("stride", {}),
]

each_method = pytest.mark.parametrize(
    ("method", "options"),
    METHODS,
    ids=[f"{m}-{'-'.join(map(str, o.values())) or 'default'}" for m, o in METHODS],
)
