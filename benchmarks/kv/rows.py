"""The policies of the tables: every method of the registry, controls, and what we tried beside them."""

from __future__ import annotations

from typing import Any

from thriftree.benchmarks.kv.policies import Policy
from thriftree.plugins.kv_cache import registry

KEEP = (0.5, 0.25, 0.125)
_HEADS: dict[str, Any] = {"induction": 4, "echo": 1}  # as the head file's default shares, on the default model
_PER_HEAD = ("keydiff", "expected_attention", "razor_observed", "razor_keydiff")
_AWARE = ("snapkv", "expected_attention", "razor_observed")
_SHORT = (
    "razor_observed",
    "razor_attention",
    "observed",
    "keydiff + per_head",
    "snapkv",
    "streaming_llm",
    "random",
    "stride",
)


def policies() -> list[Policy]:
    """All rows of the long form, in the order of the table."""
    made = [_plain(name) for name in registry.names() if not _control(name) and not registry.describe(name).reads]
    made += [_plain(name, per_head=True) for name in _PER_HEAD]
    made += [
        _razor("razor_observed, 14 heads", "observed", induction=13, echo=1),
        _razor("razor_attention, row from layer 2", "streaming_llm", compensate=2, **_HEADS),
        _razor("retrieval heads + expected_attention", "expected_attention", **_HEADS),
        _razor("retrieval heads + observed or expected", "blend", per_head=True, second="expected_attention", **_HEADS),
        *(_razor(f"razor_observed, random heads, seed {seed}", "observed", control=seed, **_HEADS) for seed in (1, 2)),
    ]
    made += [Policy(f"{name}, question seen", name, aware=True, **_heads(name)) for name in _AWARE]
    made += [
        Policy(f"{name}, question seen", name, aware=True) for name in registry.names() if registry.describe(name).reads
    ]
    made += [Policy(f"random, seed {seed}", "random", seed=seed) for seed in (1, 2)]
    return [*made, Policy("stride", "stride")]


def candidates() -> list[Policy]:
    """What the shipped setting was picked from, on the dev split."""
    made = []
    for induction, echo in ((0, 0), (4, 1), (7, 1)):
        for method in ("observed", "keydiff", "expected_attention"):
            made += [_candidate(method, {}, induction, echo, per_head) for per_head in (False, True)]
    made.append(_candidate("observed", {}, 13, 1, False))
    for induction, echo in ((0, 0), (4, 1)):
        for second in ("keydiff", "expected_attention"):
            made.append(_candidate("blend", {"second": second}, induction, echo, True))
    made.append(_candidate("blend", {"second": "keydiff"}, 4, 1, False))
    return made


def _candidate(method: str, options: dict[str, str], induction: int, echo: int, per_head: bool) -> Policy:
    words = [f"{induction}+{echo}", method, *options.values(), *(["per_head"] if per_head else [])]
    return Policy(" ".join(words), method, dict(options), per_head, induction, echo)


def short() -> list[Policy]:
    """Those of the short form."""
    return [p for p in policies() if p.name in _SHORT or p.name == "random, seed 1"]


def _control(name: str) -> bool:
    return name in ("random", "stride")


def _heads(method: str) -> dict[str, Any]:
    return _HEADS if registry.describe(method).retrieval else {}


def _plain(method: str, per_head: bool = False) -> Policy:
    name = f"{method} + per_head" if per_head else method
    return Policy(name, method, per_head=per_head, **_heads(method))


def _razor(
    name: str,
    method: str,
    induction: int,
    echo: int,
    control: int | None = None,
    compensate: int | None = None,
    per_head: bool = False,
    **options: str,
) -> Policy:
    return Policy(name, method, dict(options), per_head, induction, echo, control, compensate)
