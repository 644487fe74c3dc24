"""Triton decides when it is first imported whether it interprets: its kernels are tested in a process of their own.

Without TRITON_INTERPRET the same tests run on a CUDA device where there is one (tests/gpu).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: Where the kernels of this process run.
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
#: A GPU's exp is good to a few last bits, and its sums run in another order: so much more may a result be off.
LOOSE = 1.0 if DEVICE == "cpu" else 8.0
#: Bytes of shared memory that one program may have on a Hopper GPU.
SHARED = 227 << 10


def triton_of(kernel: str, module: str = "triton") -> Any:
    """A Triton module of a package of `thriftree.kernels`. Skips where its kernels cannot run."""
    pytest.importorskip("triton")
    if not INTERPRETED and DEVICE == "cpu":
        pytest.skip("no CUDA device, and needs TRITON_INTERPRET=1 without one: test_interpreted.py runs this file so")
    return importlib.import_module(f"thriftree.kernels.{kernel}.{module}")


def there(*values: Any) -> tuple[Any, ...]:
    """The arguments of a kernel, tensors among them on its device."""
    return tuple(value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in values)


def compiles(kernel: Any, names: Mapping[str, str], sizes: Mapping[str, Any]) -> bool:
    """Whether Triton makes code for a Hopper GPU of it that fits into its shared memory.

    `names`: types of arguments, int32 where nothing is said.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    known = {name: value for name, value in sizes.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in known else names.get(name, "i32") for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, signature, known), target=GPUTarget("cuda", 90, 32))
    return "ptx" in made.asm and made.metadata.shared <= SHARED
