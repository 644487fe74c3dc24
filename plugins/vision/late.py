"""`thrift.vision.late`: what a request may say of visual tokens that only the language model's first layers see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: How the tokens that go on are chosen. "drop": none of them does.
METHODS = ("drop", "attention", "random", "stride")
NOT_HERE = "this server was started without it (--vision-late-layer)"


@dataclass(frozen=True)
class Late:
    """Of a prompt's visual tokens a share goes on through the late layers; text always does.

    ``drop``: none goes on (ToDRE's second stage, 2505.18757, at a fixed layer: its threshold is not public).
    ``attention``: those that the prompt's last token attends to most in the layer before the late ones, mean over heads
    (FastV, 2403.06764; the paper counts each image, we count the prompt). ``random``, ``stride``: controls.
    """

    keep: float = 0.0
    method: str = "drop"

    def __post_init__(self) -> None:
        if self.method not in METHODS or (self.method == "drop") != (self.keep == 0) or not 0 <= self.keep < 1:
            raise ValueError(f"{self.method} of {self.keep:g}")


def checked(asked: Any) -> Late | None:
    """What was asked; None: every token goes on.

    Raises:
        ValueError: ``"keep: why"``, or ``": why"`` of the whole.
    """
    if asked == "off" and isinstance(asked, str):
        return None
    if not isinstance(asked, Mapping):
        raise ValueError(': must be "off" or an object {"keep": ..., "method": ...}')
    if unknown := sorted(set(map(str, asked)) - {"keep", "method"}):
        raise ValueError(f"{unknown[0][:64]}: unknown; expected keep, method")
    keep = asked.get("keep", 0.0)
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 <= keep <= 1:
        raise ValueError("keep: must be a share of the visual tokens: a number from 0 to 1")
    method = asked.get("method", "attention" if keep else "drop")
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method: must be one of {', '.join(METHODS)}")
    if method == "drop" and keep:
        raise ValueError(f"method: drop keeps none, and keep is {keep:g}; leave one of them out")
    if keep == 1:
        return None
    return Late(float(keep), method if keep else "drop")


def schema(layer: int) -> dict[str, Any]:
    """JSON schema of `late` on a server with this late layer."""
    return {
        "type": "object",
        "description": f"visual tokens that go on from layer {layer}; alone, an image enters whole",
        "properties": {
            "keep": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.0, "description": "share of them"},
            "method": {"type": "string", "enum": list(METHODS), "description": "default: drop, or with keep attention"},
        },
        "additionalProperties": False,
    }
