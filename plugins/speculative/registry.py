"""Method name -> drafter, built when first asked for; and what a server says about its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from thriftree.plugins import schema
from thriftree.plugins.speculative.base import Drafter
from thriftree.plugins.speculative.memory import Memory

DEFAULT_METHOD = "auto"

#: name -> module in this package, drafter, its configuration. One line per method.
_METHODS: dict[str, tuple[str, str, str]] = {
    "auto": ("auto", "Auto", "AutoConfig"),
    "token_recycling": ("token_recycling", "TokenRecycling", "TokenRecyclingConfig"),
    "trie_lookahead": ("trie_lookahead", "TrieLookahead", "TrieLookaheadConfig"),
    "suffix": ("suffix", "Suffix", "SuffixConfig"),
}
_FAMILY = schema.Family("thriftree.plugins.speculative", _METHODS)
names, configure = _FAMILY.names, _FAMILY.configure


@dataclass(frozen=True, slots=True)
class Method:
    """A method as the server presents it; `parameters` is a JSON schema of what a request may set."""

    name: str
    paper: str
    summary: str
    parameters: dict[str, Any]
    family: str = "speculation"
    exact: bool = True
    default: bool = False


def describe(name: str) -> Method:
    config = _FAMILY.config(name)
    return Method(
        name=name,
        paper=config.paper,
        summary=schema.summary(config),
        parameters=schema.parameters(config),
        default=name == DEFAULT_METHOD,
    )


def build(name: str, memory: Memory, options: Mapping[str, Any] | None = None) -> Drafter:
    """A drafter of this method over `memory`, which it shares with all others built over it."""
    config = configure(name, options)
    module, drafter, _ = _METHODS[name]
    made: Drafter = getattr(import_module(f"thriftree.plugins.speculative.{module}"), drafter)(memory, config)
    return made
