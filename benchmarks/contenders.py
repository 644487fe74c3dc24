"""Who is compared, and which engine each runs in."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from thriftree.plugins.speculative import registry

#: vLLM's n-gram drafter as its users set it; `--ngram-tokens` changes the first.
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
_SUFFIX = {"method": "suffix", "num_speculative_tokens": 16}

STOCK = ("off", "off_again", "ngram", "vllm_suffix")
TREES = ("tree_off", *registry.names())
DEFAULT = ("off", "ngram", "token_recycling", "trie_lookahead", "suffix", "auto", "vllm_suffix")
#: Rows at batch 2 and more, unless methods are named.
BATCHED = ("off", "ngram", "auto")


@dataclass(frozen=True)
class EngineSpec:
    """One engine process. Equal specs share a process."""

    key: str
    model: str
    dtype: str
    eager: bool
    max_model_len: int
    flags: dict[str, Any] = field(default_factory=dict, compare=False)
    engine: str = "thriftree.benchmarks.worker:Engine"  # the class that its process runs


@dataclass(frozen=True)
class Contender:
    """A row of the table."""

    name: str
    engine: EngineSpec

    def extra(self, tenant: str) -> dict[str, Any] | None:
        """What the request says to our engine."""
        if self.name not in TREES:
            return None
        asked: Any = "off" if self.name == "tree_off" else {"method": self.name}
        return {"thriftree": {"speculation": asked, "tenant": tenant}}


def missing(name: str) -> str | None:
    """Why this contender cannot run here."""
    if name == "vllm_suffix" and importlib.util.find_spec("arctic_inference") is None:
        return "not installed (vLLM's suffix method needs arctic-inference)"
    return None


def check(names: Sequence[str]) -> None:
    """ValueError naming what is unknown or missing."""
    known = (*STOCK, *TREES)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--methods {' '.join(unknown)}: there are {', '.join(known)}")
    if "off" not in names:
        raise ValueError("--methods needs off: every figure is a ratio to it")


def tree_flags() -> dict[str, Any]:
    """The engine flags that `thriftree serve` sets in its default profile."""
    from thriftree.plugins.engine import launch
    from thriftree.server.sections import Speculation

    args = argparse.Namespace(speculative_config=None, additional_config=None)
    launch.configure(args, Speculation().model_dump())
    return {"speculative_config": args.speculative_config, "additional_config": args.additional_config}


def build(
    names: Sequence[str],
    *,
    model: str,
    dtype: str,
    eager: bool,
    max_model_len: int,
    separate: bool = False,
    ngram_tokens: int = 4,
) -> list[Contender]:
    """The contenders that can run here, in order; `separate`: every tree method gets an engine of its own."""

    def engine(name: str) -> EngineSpec:
        if name in ("off", "off_again"):
            key, flags = "off", {}
        elif name == "ngram":
            key, flags = "ngram", {"speculative_config": {**NGRAM, "num_speculative_tokens": ngram_tokens}}
        elif name == "vllm_suffix":
            key, flags = "vllm_suffix", {"speculative_config": dict(_SUFFIX)}
        else:
            key, flags = f"trees-{name}" if separate else "trees", tree_flags()
        return EngineSpec(key, model, dtype, eager, max_model_len, flags)

    return [Contender(name, engine(name)) for name in names if missing(name) is None]
