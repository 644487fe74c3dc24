"""shapes-vl: a small vision-language model (LLaVA-1.5 layout) that answers questions about synthetic scenes.

`make` trains it. Its weights (under 3 MB) will be part of the package (`data/`) once the recipe reaches 95 %.
"""

from __future__ import annotations

from pathlib import Path

from thriftree.zoo.cache import ZooError

NAME = "shapes-vl"


def ensure() -> Path:
    """The checkpoint's folder. Raises ZooError where the installation lacks it."""
    folder = Path(__file__).parent / "data"
    if not (folder / "model.safetensors").exists():
        how = f"`python -m thriftree.zoo {NAME} --out FOLDER` trains it (half an hour), then serve FOLDER"
        raise ZooError(f"{NAME} has no weights in this release: {how}")
    return folder
