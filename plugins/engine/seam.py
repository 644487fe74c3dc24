"""A name that vLLM looks up in one of its modules, replaced for as long as a `with` lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def replaced(module: ModuleType, name: str, value: Any) -> Iterator[Any]:
    """``module.name`` is `value` inside; gives what it was."""
    stock = getattr(module, name)
    setattr(module, name, value)
    try:
        yield stock
    finally:
        setattr(module, name, stock)
