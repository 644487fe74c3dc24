"""What is measured: every method with its defaults, variants that papers name, and the controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from thriftree.plugins.vision import registry

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
