"""What is measured: every method with its defaults, variants that papers name, and the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from thriftree.plugins.vision import late, registry

#: Shares of an image's tokens: one half, and LLaVA-1.5's usual 192, 128, 64 and 32 of 576.
KEEPS = (0.5, 0.33, 0.22, 0.11, 0.05)
CONTROLS = ("random", "stride", "avgpool")
#: Rows beside a method's own: label -> method, parameters.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fopru, row": ("fopru", {"strategy": "row"}),
}
#: Of the short run.
SHORT = ("divprune", "hiprune", "visionzip", "tome", *CONTROLS)


@dataclass(frozen=True)
class Policy:
    """A row of the table."""

    name: str
    method: str
    own: dict[str, Any] = field(default_factory=dict)

    def vision(self, keep: float) -> dict[str, Any]:
        """As a request says it."""
        return {"method": self.method, "keep": keep, **self.own}


@dataclass(frozen=True)
class LatePolicy:
    """A row of images that enter whole; in the late layers `keep` of their tokens are left."""

    name: str
    method: str

    def vision(self, keep: float) -> dict[str, Any]:
        """As a request says it."""
        return {"late": {"keep": keep, "method": self.method if keep else "drop"}}


def late_cells(layer: int, keeps: Sequence[float]) -> list[tuple[LatePolicy, float]]:
    """All methods at the budgets, and one row for no token at all."""
    made = [LatePolicy(f"late at {layer}, {name}", name) for name in late.METHODS if name != "drop"]
    return [(policy, keep) for policy in made for keep in keeps] + [(LatePolicy(f"late at {layer}, drop", "drop"), 0.0)]


def policies(names: tuple[str, ...] | None = None) -> list[Policy]:
    """Methods, their variants, controls last; `names`: of these only.

    Raises:
        ValueError: a name that there is not.
    """
    methods = [name for name in registry.names() if name not in CONTROLS]
    made = [Policy(name, name) for name in methods]
    made += [Policy(name, method, own) for name, (method, own) in _VARIANTS.items()]
    made += [Policy(name, name) for name in CONTROLS]
    known = [policy.name for policy in made]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"no policy {unknown[0]!r}; there are {', '.join(known)}")
    return [policy for policy in made if names is None or policy.name in names]
