"""All scenes that the training draws from, drawn once: pixels and labels on the device, the rest beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from thriftree.zoo.shapes_vl.lessons import lesson
from thriftree.zoo.shapes_vl.scenes import Scene

_PART = 256  # scenes that a process draws before it answers
_INLINE = 2 * _PART  # so few are drawn sooner than processes start


@dataclass(frozen=True)
class Labels:
    """`pixels`: [n, SIDE, SIDE, 3] bytes; `patches`: [n, GRID * GRID, ...] each; `names`: [n, NAMES]."""

    pixels: Any
    patches: dict[str, Any]
    names: Any

    def pick(self, rows: Any) -> Labels:
        """Those of `rows` [B], tensors as these."""
        return Labels(self.pixels[rows], {name: each[rows] for name, each in self.patches.items()}, self.names[rows])


@dataclass(frozen=True)
class Pool:
    """`shown`: [n, GRID * GRID], whether a patch shows a thing or a character."""

    scenes: list[Scene]
    shown: np.ndarray
    labels: Labels


def draw(count: int, device: str = "cpu") -> Pool:
    """The scenes of seeds 0..count-1, drawn by all processors."""
    scenes: list[Scene] = []
    parts: list[Labels] = []
    for some, labels in _drawn([range(start, min(start + _PART, count)) for start in range(0, count, _PART)]):
        scenes += some
        parts.append(labels)
    shown = np.concatenate([part.patches["what"] for part in parts]) > 0
    return Pool(scenes, shown, _on(device, parts))


def _drawn(parts: list[range]) -> Iterator[tuple[list[Scene], Labels]]:
    if sum(map(len, parts)) <= _INLINE:
        yield from map(_part, parts)
        return
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_part, parts)


def _part(seeds: Iterable[int]) -> tuple[list[Scene], Labels]:
    drawn = [lesson(seed) for seed in seeds]
    patches = {name: np.stack([one.patches[name] for one in drawn]) for name in drawn[0].patches}
    pixels, names = np.stack([one.pixels for one in drawn]), np.stack([one.names for one in drawn])
    return [one.scene for one in drawn], Labels(pixels, patches, names)


def _on(device: str, parts: list[Labels]) -> Labels:
    import torch

    def joined(arrays: Iterable[np.ndarray]) -> Any:
        return torch.cat([torch.from_numpy(array).to(device) for array in arrays])

    return Labels(
        joined(part.pixels for part in parts),
        {name: joined(part.patches[name] for part in parts) for name in parts[0].patches},
        joined(part.names for part in parts),
    )
