"""A synthetic field of tokens, nothing trained: what each selector keeps of the objects in it, and where it fails.

24 x 24 rows of 64 channels. The background is four textures (one vector each, in Voronoi cells) with noise; six objects
of 1 x 1 or 2 x 2 rows have a vector of their own. What the encoder looks at is log-normal, four times as much on a
random 60 % of the objects' rows. The choice is good if an object keeps a row; 4 objects out of 10 ask for luck where
only attention counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.image import Image, Layout, Tower

SIDE, CHANNELS, OBJECTS, NOISE = 24, 64, 6, 0.25
TOWER = Tower(layers=24, cls=True)


@dataclass(frozen=True)
class Field:
    features: Tensor  # [576, 64]
    attention: Tensor  # [576]
    objects: Tensor  # [576] number of the object, -1: background
    textures: Tensor  # [576] number of the texture
    registers: Tensor  # [576] bool: a row of noise (`with_registers`)

    def image(self, method: Method, keep: int, seed: int = 0) -> Image:
        taps = {
            tap: self.features if tap.reading == "keys" else self.attention for tap in method.taps(TOWER)
        }  # keys: the features again
        return Image(self.features, keep, Layout.grid(SIDE, SIDE), taps, None, seed)

    def found(self, rows: Tensor) -> float:
        """Share of the objects of which a row is kept."""
        return len(set(self.objects[rows].tolist()) - {-1}) / OBJECTS


def field(seed: int, contrast: float = 1.0) -> Field:
    """`contrast`: the object's vector is so much of its own and the rest of the texture under it."""
    draw = torch.Generator().manual_seed(seed)
    row, col = torch.arange(SIDE * SIDE) // SIDE, torch.arange(SIDE * SIDE) % SIDE
    looks, centres = torch.randn(4, CHANNELS, generator=draw), torch.rand(4, 2, generator=draw) * SIDE
    textures = ((row[:, None] - centres[:, 0]) ** 2 + (col[:, None] - centres[:, 1]) ** 2).argmin(dim=1)
    clean, objects = looks[textures], torch.full_like(row, -1)
    for number in range(OBJECTS):
        place = _free(objects, draw)
        objects[place] = number
        clean[place] = contrast * torch.randn(CHANNELS, generator=draw) + (1 - contrast) * clean[place]
    features = clean + NOISE * torch.randn(clean.shape, generator=draw)
    attention = (0.7 * torch.randn(len(row), generator=draw)).exp()
    attention[(objects >= 0) & (torch.rand(len(row), generator=draw) < 0.6)] *= 4
    return Field(features, attention / attention.sum(), objects, textures, torch.zeros_like(row, dtype=torch.bool))


def with_registers(field: Field, seed: int, count: int = 20) -> Field:
    """Some of the background's rows become noise of large norm, as towers leave behind; nothing looks at them."""
    draw = torch.Generator().manual_seed(seed)
    background = (field.objects < 0).nonzero().flatten()
    rows = background[torch.randperm(len(background), generator=draw)[:count]]
    features, registers = field.features.clone(), field.registers.clone()
    features[rows] = 5 * torch.randn(count, CHANNELS, generator=draw)
    registers[rows] = True
    return replace(field, features=features, registers=registers)


def _free(objects: Tensor, draw: torch.Generator) -> Tensor:
    """Rows of a square of 1 x 1 or 2 x 2 that no object has yet."""
    size = int(torch.randint(1, 3, (), generator=draw))
    while True:
        top, left = torch.randint(0, SIDE - size + 1, (2,), generator=draw).tolist()
        place = torch.tensor([(top + down) * SIDE + left + right for down in range(size) for right in range(size)])
        if bool((objects[place] < 0).all()):
            return place
