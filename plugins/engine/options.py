"""What an operator sets: ``--additional-config '{"thriftree": {"speculation": {...}}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

DEFAULT_METHOD = "auto"


def given(additional_config: Mapping[str, Any], part: str, options: type) -> dict[str, Any] | None:
    """A part of our own in vLLM's additional config, for the dataclass `options`; None: it is not there.

    Raises:
        ValueError: no object, or a setting that there is not, by its name.
    """
    found = dict(additional_config.get("thriftree") or {}).get(part)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ValueError(f"additional-config thriftree.{part} must be an object")
    unknown = sorted(set(found) - {field.name for field in fields(options)})
    if unknown:
        raise ValueError(f"additional-config thriftree.{part} has no setting {', '.join(unknown)}")
    return dict(found)


@dataclass(frozen=True)
class SpeculationOptions:
    """Defaults and caps of a server's speculation."""

    #: Method of requests that name none.
    method: str = DEFAULT_METHOD
    #: Nodes a request gets at most; vLLM's `num_speculative_tokens` caps it too.
    max_nodes: int = 16
    #: Memory for all drafters' state, in MiB.
    memory_mib: int = 64
    #: Let measured step cost choose the number of nodes; off: always `max_nodes`.
    adaptive: bool = True
    #: Prompt rows that teach the drafter, as a share of a prefill step's rows (each costs one row of the LM head).
    seed_share: float = 0.125
    #: Linear layers of few rows: ours where measured faster (the weights are held twice then), or vLLM's alone.
    linear: Literal["auto", "stock"] = "auto"

    @classmethod
    def of(cls, additional_config: Mapping[str, Any]) -> SpeculationOptions:
        """Read the `thriftree` part of vLLM's additional config.

        Raises:
            ValueError: an unknown or out-of-range setting, by its name.
        """
        options = cls(**(given(additional_config, "speculation", cls) or {}))
        if not 1 <= options.max_nodes <= 1024:
            raise ValueError(f"thriftree.speculation.max_nodes must be 1..1024, not {options.max_nodes}")
        if options.memory_mib < 1:
            raise ValueError(f"thriftree.speculation.memory_mib must be at least 1, not {options.memory_mib}")
        if not 0 <= options.seed_share <= 1:
            raise ValueError(f"thriftree.speculation.seed_share must be 0..1, not {options.seed_share}")
        if options.linear not in ("auto", "stock"):
            raise ValueError(f"thriftree.speculation.linear must be auto or stock, not {options.linear!r}")
        return options
