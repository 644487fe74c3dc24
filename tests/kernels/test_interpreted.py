"""The GPU paths of all kernels in Triton's interpreter: the tests of `*_triton.py`, in one process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.interpreter import INTERPRETED

FILES = sorted(Path(__file__).parent.glob("test*_triton.py"))


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_a_process_of_their_own() -> None:
    pytest.importorskip("triton")
    assert len(FILES) == 4
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *map(str, FILES)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "needs TRITON_INTERPRET" not in done.stdout, done.stdout
