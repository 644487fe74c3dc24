"""The models of the house by name, and ``zoo:NAME`` wherever a model is asked for."""

from __future__ import annotations

from pathlib import Path

from thriftree.zoo import cache, shapes_vl, smollm2, tiny
from thriftree.zoo.cache import Say, ZooError, say

SCHEME = "zoo:"


def names() -> tuple[str, ...]:
    return (smollm2.NAME, shapes_vl.NAME, *tiny.SHAPES)


def ensure(name: str, source: Path | None = None, progress: Say = say) -> Path:
    """The folder of a model, prepared first if need be. Raises ZooError for a name that is none."""
    if name == smollm2.NAME:
        return smollm2.ensure(source, progress)
    if name not in names():
        raise ZooError(f"no model {name!r}; there are {', '.join(names())}")
    if source is not None:
        raise ZooError(f"--source is for {smollm2.NAME}: {name} is not fetched")
    return shapes_vl.ensure() if name == shapes_vl.NAME else tiny.ensure(name)


def resolve(model: str, progress: Say = say) -> tuple[str, str | None]:
    """``zoo:NAME`` as its folder and NAME; everything else unchanged, and None."""
    if not model.startswith(SCHEME):
        return model, None
    name = model.removeprefix(SCHEME)
    return str(ensure(name, progress=progress)), name


def lines() -> list[str]:
    """What there is, and what is in the cache, for people."""
    rows = [(smollm2.NAME, "the default", (smollm2.path() / cache.STAMP).exists())]
    rows.append((shapes_vl.NAME, "answers questions about drawn shapes (images)", True))
    for name, shape in tiny.SHAPES.items():
        ready = (cache.models() / f"tiny-{name}" / cache.STAMP).exists()
        rows.append((name, f"tiny, random: {shape.summary}", ready))
    return [f"{name:22} {'ready' if ready else '-':6} {what}" for name, what, ready in rows]
