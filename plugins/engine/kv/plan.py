"""A request's compression, worked out alike (and apart) by the client, the scheduler and the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thriftree.plugins.engine.contract_var import EXTRA_ARGS_KEY
from thriftree.plugins.engine.drafting import read_contract
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.request import SHARED, Terms, budget, checked, default
from thriftree.plugins.kv_cache.window import Window

_EVERYTHING = 1 << 40


@dataclass(frozen=True, slots=True)
class Tier:
    """Layers that share a window: one or more KV cache groups."""

    index: int = 0
    tiers: int = 1
    block: int = 16
    heads: int = 1  # KV heads of the whole model's layer
    full: int = 0  # retrieval heads in a layer, at most


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to the cache of one request."""

    name: str
    method: Method
    budget: int  # rows that a head keeps, in the mean over the layers
    sinks: int
    recent: int
    defer: bool
    per_head: bool
    prompt: int

    def window(self, tier: Tier) -> Window:
        """The window of this request in the layers of a tier."""
        if self.method.reads:
            return Window(_EVERYTHING, tier.block, self.prompt)
        share = self.method.share(tier.index, tier.tiers)
        least = self.sinks + self.recent + tier.block  # whatever a tier's share is
        rows = least + round(share * (self.budget - least))
        full = tier.full if self.method.retrieval else 0
        return Window(rows, tier.block, self.prompt, self.defer, full, tier.heads)

    def touched(self, tokens: int, tiers: Sequence[Tier]) -> bool:
        """Whether a token that came when so many were cached may be another one than with a whole cache."""
        if self.method.reads:
            return tokens >= self.prompt and tokens >= self.budget
        return any(self.window(tier).start(tokens) > 0 for tier in tiers)

    def publishable(self, tiers: Sequence[Tier]) -> int:
        """Tokens at the front that may be shared with other requests: in every tier, so that a hit is one length.

        A method that weighs the whole prompt's queries must compute them all, so it takes no hit (and gives none, for
        the sake of one rule).
        """
        if self.method.observes:
            return 0
        whole = self.prompt if self.method.reads else min(self.window(tier).publishable() for tier in tiers)
        return max(0, min(whole, self.prompt - self.method.window))  # the queries that it looks at are computed


def plan_of(params: Any, prompt: int, terms: Terms) -> Plan | None:
    """The plan of a request with these sampling parameters and that many prompt tokens; None: its cache stays whole.

    A request that cannot outgrow its budget is not touched at all. One that says nothing gets the server's default.
    """
    if terms.reason is not None:
        return None
    extra = getattr(params, "extra_args", None) or {}
    contract = read_contract(extra.get(EXTRA_ARGS_KEY, {}))
    asked = contract.get("kv") if isinstance(contract, Mapping) else None
    asked = default(terms) if asked is None else asked
    if asked == "off":
        return None
    kv = checked(asked, terms)
    assert isinstance(kv, dict)
    rows = budget(kv, prompt, terms)
    if params.max_tokens is not None and prompt + params.max_tokens <= rows:
        return None
    own = {name: value for name, value in kv.items() if name not in SHARED}
    name = str(kv["method"])
    method = registry.configure(name, own)
    defer = bool(kv["defer"]) and not (terms.max_tokens is not None and prompt > terms.max_tokens)
    return Plan(name, method, rows, kv["sinks"], kv["recent"], defer, kv["per_head"], prompt)


def check_room(params: Any, prompt: int, terms: Terms) -> None:
    """A request that keeps its whole cache must fit in what the server grants.

    Raises:
        ValueError: it does not; the message names the field.
    """
    most = terms.max_tokens
    if most is None or terms.reason is not None or prompt + params.max_tokens <= most:
        return
    plan = plan_of(params, prompt, terms)
    if plan is None or plan.method.reads:
        kept = "off" if plan is None else f"{plan.name} drops nothing"
        raise ValueError(
            f"thriftree.kv: {kept}, but a prompt of {prompt} tokens and an answer of {params.max_tokens} are above "
            f"this server's cap of {most} tokens in its cache (--kv-max-tokens): let it compress, or ask for less"
        )
