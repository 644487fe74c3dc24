"""Method name -> its configuration, loaded when first asked for; and what a server says about its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftree.plugins import schema

if TYPE_CHECKING:  # a gateway in front of other servers knows the names, and does without torch
    from thriftree.plugins.kv_cache.base import Method

#: The method of a request that asks for a budget and names none.
DEFAULT_METHOD = "razor_observed"

#: name -> module in this package, class. One line per method.
_METHODS: dict[str, tuple[str, str]] = {
    "razor_observed": ("razor_observed", "RazorObserved"),
    "razor_keydiff": ("razor_keydiff", "RazorKeyDiff"),
    "razor_attention": ("razor_attention", "RazorAttention"),
    "observed": ("observed", "Observed"),
    "h2o": ("h2o", "H2O"),
    "snapkv": ("snapkv", "SnapKV"),
    "pyramid_kv": ("pyramid_kv", "PyramidKV"),
    "keyformer": ("keyformer", "Keyformer"),
    "expected_attention": ("expected_attention", "ExpectedAttention"),
    "keydiff": ("keydiff", "KeyDiff"),
    "knorm": ("knorm", "Knorm"),
    "lagkv": ("lagkv", "LagKV"),
    "lacache": ("lacache", "LaCache"),
    "streaming_llm": ("streaming_llm", "StreamingLLM"),
    "recycled_attention": ("recycled_attention", "RecycledAttention"),
    "actqkv_like": ("actqkv_like", "ActqkvLike"),
    "random": ("random", "Random"),
    "stride": ("stride", "Stride"),
}
_FAMILY = schema.Family("thriftree.plugins.kv_cache", _METHODS)
names = _FAMILY.names


@dataclass(frozen=True, slots=True)
class Description:
    """A method as the server presents it; `parameters` is a JSON schema of what a request may set of it."""

    name: str
    paper: str
    summary: str
    parameters: dict[str, Any]
    window: int  # newest queries that it looks at
    observes: bool  # weighs every query row against the cached keys
    needs_rope: bool
    retrieval: bool  # needs a head file
    reads: bool  # frees nothing: it reads less
    defer: bool  # compresses once the prompt is complete, unless the request says otherwise
    family: str = "kv"
    exact: bool = False
    default: bool = False


def describe(name: str) -> Description:
    method = _FAMILY.config(name)
    return Description(
        name=name,
        paper=method.paper,
        summary=schema.summary(method),
        parameters=schema.parameters(method),
        window=method.window,
        observes=method.observes,
        needs_rope=method.needs_rope,
        retrieval=method.retrieval,
        reads=method.reads,
        defer=method.defer,
        default=name == DEFAULT_METHOD,
    )


def configure(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """The method with `options` checked against its schema.

    Raises:
        ValueError: the message starts with the field's name.
    """
    made: Method = _FAMILY.configure(name, options)
    return made
