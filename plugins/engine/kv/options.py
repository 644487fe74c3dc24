"""What an operator sets: ``--additional-config '{"thriftree": {"kv": {...}}}'``; ``{}`` alone switches it on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thriftree.plugins.engine.options import given
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.request import NOT_HERE, Terms

#: The best default that the server has: the registry's, or where it has no head file the one without.
AUTO = "auto"
_WITHOUT_HEADS = "observed"


@dataclass(frozen=True)
class KVOptions:
    """Defaults and caps of a server's KV compression."""

    #: auto: where the model allows it; on: refuse to start where it does not.
    compression: Literal["auto", "on", "off"] = "auto"
    #: Method of requests that name none.
    method: str = AUTO
    #: Share of the prompt that requests keep which say neither budget nor keep.
    keep: float = 0.5
    #: Head file of the retrieval heads: the one shipped for this model, a path, or none.
    heads: str = "default"
    #: Groups of layers with budgets of their own.
    tiers: int = 1
    #: Tokens that a request may keep per layer and head; None: as many as it likes.
    max_tokens: int | None = None

    @classmethod
    def of(cls, additional_config: Mapping[str, Any]) -> KVOptions:
        """Read the `thriftree` part of vLLM's additional config; without a `kv` in it, compression is off.

        Raises:
            ValueError: an unknown or out-of-range setting, by its name.
        """
        mine = given(additional_config, "kv", cls)
        if mine is None:
            return cls(compression="off")
        options = cls(**mine)
        for name, why in options._mistakes():
            raise ValueError(f"thriftree.kv.{name} {why}, not {getattr(options, name)!r}")
        return options

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        if self.compression not in ("auto", "on", "off"):
            yield "compression", "must be auto, on or off"
        if self.method != AUTO and self.method not in registry.names():
            yield "method", f"must be {AUTO} or one of {', '.join(registry.names())}"
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            yield "keep", "must be above 0 and at most 1"
        if not isinstance(self.heads, str) or not (self.heads in ("off", "default") or Path(self.heads).is_file()):
            yield "heads", "must be off, default or a head file"
        if type(self.tiers) is not int or not 1 <= self.tiers <= 8:
            yield "tiers", "must be 1..8"
        if self.max_tokens is not None and (type(self.max_tokens) is not int or self.max_tokens < Terms().least()):
            yield "max_tokens", f"must be at least {Terms().least()}"

    def on(self, reason: str | None) -> bool:
        """Whether an engine compresses that cannot for `reason` (None: it can).

        Raises:
            ValueError: it cannot, and the operator insists.
        """
        if reason is not None and self.compression == "on":
            raise ValueError(f"--kv-compression on: {reason}")
        return reason is None and self.compression != "off"

    def missing(self, layers: int | None = None) -> dict[str, str]:
        """Methods that these options, or a model of so many layers, leave out; and why."""
        found = {}
        for name in registry.names():
            method = type(registry.configure(name))
            if method.retrieval and self.heads == "off":
                found[name] = "it needs a head file (--kv-heads default, or a file made by `thriftree probe heads`)"
            elif self.tiers == 1 and method.share is not Method.share:
                found[name] = "it needs layers in tiers (--kv-tiers 2 or more)"
            elif (why := _misfit(registry.configure(name), layers)) is not None:
                found[name] = why
        return found

    def terms(self, reason: str | None, missing: Mapping[str, str], block: int, layers: int | None = None) -> Terms:
        """What requests may ask for on an engine that `kv.support.support` has described; `layers`: of its model.

        Raises:
            ValueError: a setting does not fit the engine.
        """
        if not self.on(reason):
            return Terms(reason=reason if self.compression != "off" else NOT_HERE)
        missing = {**self.missing(layers), **missing}
        method = self.method
        if method == AUTO:
            method = registry.DEFAULT_METHOD if registry.DEFAULT_METHOD not in missing else _WITHOUT_HEADS
        elif method in missing:
            raise ValueError(f"--kv-method {method}: {missing[method]}")
        if self.max_tokens is not None and registry.describe(method).reads:
            raise ValueError(
                f"--kv-method {method}: it drops nothing, which --kv-max-tokens needs of the default method"
            )
        terms = Terms(None, missing, method, float(self.keep), block, layers, self.max_tokens, tiers=self.tiers)
        if self.max_tokens is not None and self.max_tokens < terms.least():
            raise ValueError(f"--kv-max-tokens {self.max_tokens}: must be at least {terms.least()} on this engine")
        return terms


def _misfit(method: Method, layers: int | None) -> str | None:
    """Why a method with its own defaults cannot be used in a model of so many layers."""
    try:
        if layers is not None:
            method.check(layers)
    except ValueError as error:
        return str(error)
    return None
