"""shapes-vl: a small vision-language model (LLaVA-1.5 layout) that answers questions about synthetic scenes.

Its weights (4.5 MB) are part of the package (`data/`); `make` is how they came about.
"""

from __future__ import annotations

from pathlib import Path

from thriftree.zoo.cache import ZooError

NAME = "shapes-vl"


def ensure() -> Path:
    """The checkpoint's folder. Raises ZooError where an installation was packed without it."""
    folder = Path(__file__).parent / "data"
    if not (folder / "model.safetensors").exists():
        raise ZooError(f"{NAME} is not in this installation ({folder} has no weights): install the package anew")
    return folder
