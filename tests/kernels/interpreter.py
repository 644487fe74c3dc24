"""Triton decides when it is first imported whether it interprets: its kernels are tested in a process of their own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def triton_of(kernel: str, module: str = "triton") -> Any:
    """A Triton module of a package of `thriftree.kernels`. Skips outside of that process."""
    pytest.importorskip("triton")
    if not INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1: test_interpreted.py runs this file so")
    return importlib.import_module(f"thriftree.kernels.{kernel}.{module}")


def compiles(kernel: Any, names: Mapping[str, str], sizes: Mapping[str, Any]) -> bool:
    """Whether Triton makes code for a Hopper GPU of it. `names`: types of arguments, int32 where nothing is said."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    known = {name: value for name, value in sizes.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in known else names.get(name, "i32") for name in kernel.arg_names}
    return "ptx" in triton.compile(ASTSource(kernel, signature, known), target=GPUTarget("cuda", 90, 32)).asm
