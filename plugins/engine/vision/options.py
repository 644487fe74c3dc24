"""What an operator sets: ``--additional-config '{"thriftree": {"vision": {...}}}'``; ``{}`` alone switches it on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from thriftree.plugins.engine.options import given
from thriftree.plugins.vision import registry
from thriftree.plugins.vision.request import Terms


@dataclass(frozen=True)
class VisionOptions:
    """Defaults and caps of a server's visual-token pruning."""

    #: auto: where the model allows it; on: refuse to start where it does not.
    pruning: Literal["auto", "on", "off"] = "auto"
    #: Method of requests that name none.
    method: str = registry.DEFAULT_METHOD
    #: Share of an image's tokens, of requests that say neither keep nor keep_tokens.
    keep: float = 0.25
    #: No image may keep a larger share; the encoder's cache is as large as that needs.
    max_keep: float = 1.0
    #: Images of requests that say nothing: asked leaves them alone, always prunes them too.
    apply: Literal["asked", "always"] = "asked"
    #: First layer of the language model that requests may spare visual tokens (`vision.late`); None: none is.
    late_layer: int | None = None

    @classmethod
    def of(cls, additional_config: Mapping[str, Any]) -> VisionOptions:
        """Read the `thriftree` part of vLLM's additional config; without a `vision` in it, nothing is pruned.

        Raises:
            ValueError: an unknown or out-of-range setting, by its name.
        """
        mine = given(additional_config, "vision", cls)
        if mine is None:
            return cls(pruning="off")
        options = cls(**mine)
        for name, why in options._mistakes():
            raise ValueError(f"thriftree.vision.{name} {why}, not {getattr(options, name)!r}")
        return options

    def _mistakes(self) -> Iterator[tuple[str, str]]:
        if self.pruning not in ("auto", "on", "off"):
            yield "pruning", "must be auto, on or off"
        if self.method not in registry.names():
            yield "method", f"must be one of {', '.join(registry.names())}"
        for name in ("keep", "max_keep"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                yield name, "must be above 0 and at most 1"
        if self.apply not in ("asked", "always"):
            yield "apply", "must be asked or always"
        if self.late_layer is not None and (type(self.late_layer) is not int or self.late_layer < 1):
            yield "late_layer", "must be a layer's number from 1"
        elif self.late_layer is not None and self.pruning == "off":
            yield "late_layer", "needs pruning auto or on"

    def terms(self, reason: str | None, missing: Mapping[str, str]) -> Terms:
        """What requests may ask for on an engine that `support` has described.

        Raises:
            ValueError: a setting does not fit the engine; the message names the flag.
        """
        if self.pruning == "off":
            return Terms()
        if reason is not None:
            if self.pruning == "on":
                raise ValueError(f"--vision-pruning on: {reason}")
            return Terms(reason=reason)
        if self.method in missing:
            raise ValueError(f"--vision-method {self.method}: {missing[self.method]}")
        share = min(float(self.keep), float(self.max_keep))
        return Terms(None, dict(missing), self.method, share, float(self.max_keep))
