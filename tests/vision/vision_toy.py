"""Images for the tests: any layout, features and readings drawn from a seed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.image import Image, Layout, Tap, Tower

TOWER = Tower(layers=23, depth=24, cls=True)


def tiled(side: int, tiles: tuple[int, int], tile: tuple[int, int], newlines: bool = True) -> Layout:
    """A thumbnail of `side` by `side`, and tiles of `tile` patches whose lines end with a separator."""
    height, width = tiles[0] * tile[0], tiles[1] * tile[1]
    small, large = Layout.grid(side, side), Layout.grid(height, width + newlines)
    return Layout(
        view=torch.cat((small.view, large.view + 1)),
        row=torch.cat((small.row, large.row)),
        col=torch.cat((small.col, large.col)),
        newline=torch.cat((small.newline, (large.col == width) if newlines else large.newline)),
        tiles=tiles,
    )


def grid(rows: int) -> Layout:
    """About a square; its last line may be short."""
    width = max(1, round(rows**0.5))
    return Layout.grid(-(-rows // width), width).pick(torch.arange(rows))


def reading(tap: Tap, rows: int, draw: torch.Generator) -> Tensor:
    if tap.reading == "keys":
        return torch.randn(rows, 6, generator=draw)
    values = torch.randn(rows, generator=draw)
    return values if tap.reading == "cls_logits" else values.exp() / values.exp().sum()


def image(method: Method, keep: int, layout: Layout, seed: int = 0, channels: int = 8) -> Image:
    """An image of `layout` with all that `method` reads."""
    draw = torch.Generator().manual_seed(seed)
    rows = len(layout.row)
    features = torch.randn(rows, channels, generator=draw)
    taps = {tap: reading(tap, rows, draw) for tap in method.taps(TOWER)}
    text = torch.randn(3, channels, generator=draw) if method.needs_text else None
    return Image(features, keep, layout, taps, text, seed)


def alike(image: Image) -> Image:
    """The same image with all its rows the same."""
    taps = {tap: torch.ones_like(values) / len(values) for tap, values in image.taps.items()}
    return replace(image, features=torch.full_like(image.features, 0.3), taps=taps)


def blank(image: Image) -> Image:
    """All zeros."""
    taps = {tap: torch.zeros_like(values) for tap, values in image.taps.items()}
    text = None if image.text is None else torch.zeros_like(image.text)
    return replace(image, features=torch.zeros_like(image.features), taps=taps, text=text)
