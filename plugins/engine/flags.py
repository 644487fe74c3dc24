"""Flags of vLLM that several of our parts exclude, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SPREADS = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")


def spreading(parallel: Any) -> Iterator[str]:
    """Those of a parallel config that give a request's layers or its context to several workers."""
    for name in _SPREADS:
        if getattr(parallel, name) > 1:
            yield f"--{name.replace('_', '-')} {getattr(parallel, name)}"
