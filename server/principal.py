"""Who asks: the holder of a key, what it may ask for, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field

from thriftree.plugins.engine.contract_var import DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Caps:
    """What a key may ask for; None: no limit."""

    models: tuple[str, ...] | None = None
    max_tokens: int | None = None  # completion tokens of one request, over all its choices
    profiles: tuple[str, ...] | None = None  # of `thrift`
    methods: tuple[str, ...] | None = None  # of any family
    max_visual_tokens: int | None = None
    priority: int = 0  # the best (lowest) that it may claim; vLLM's scale: lower runs earlier
    max_kv_budget: int | None = None  # tokens that a request may keep in its cache, per layer


@dataclass(frozen=True, slots=True)
class Quota:
    """How much; None: no limit. Held per key and, with the tenant's own figures, per tenant."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and completion
    concurrent: int | None = None  # requests at once

    @property
    def limited(self) -> bool:
        return self != _UNLIMITED


_UNLIMITED = Quota()


@dataclass(frozen=True, slots=True)
class Principal:
    """A key that was presented and found valid, or nobody in particular where no keys are configured."""

    tenant: str = DEFAULT_TENANT
    key_id: str | None = None
    caps: Caps = field(default_factory=Caps)
    quota: Quota = field(default_factory=Quota)
    tenant_quota: Quota = field(default_factory=Quota)
    weight: float = 1.0  # of the tenant, in fair queueing


ANYONE = Principal()
