"""shapes-vl: a small vision-language model (LLaVA-1.5 layout) that answers questions about synthetic scenes.

Its weights are part of the package (`data/`, under 3 MB); `train` is the recipe that made them.
"""

from __future__ import annotations

from pathlib import Path

from thriftree.zoo.cache import ZooError

NAME = "shapes-vl"


def ensure() -> Path:
    """The checkpoint's folder. Raises ZooError where the installation lacks it."""
    folder = Path(__file__).parent / "data"
    if not (folder / "model.safetensors").exists():
        raise ZooError(f"this installation lacks the weights of {NAME} ({folder}): install thriftree again")
    return folder
