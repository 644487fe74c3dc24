"""The condition of tests that ask the trained model."""

from __future__ import annotations

from pathlib import Path

import pytest

from thriftree.zoo import shapes_vl

needs_weights = pytest.mark.skipif(
    not (Path(shapes_vl.__file__).parent / "data" / "model.safetensors").exists(),
    reason="shapes-vl has no weights yet: they come with zoo/shapes_vl/data once its recipe reaches 95 %",
)
