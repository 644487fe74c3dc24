"""Where an image's rows stand: a grid, or the thumbnail and tiles of LLaVA-NeXT and OneVision."""

from __future__ import annotations

from math import isqrt
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from thriftree.plugins.vision.image import Layout


def square(rows: int) -> Layout:
    """One view of as many rows as columns."""
    side = isqrt(rows)
    return Layout.grid(side, side) if side * side == rows else Layout.grid(1, rows)


def of_grid(grid: Tensor, merge: int) -> Layout:
    """From Qwen's ``[3]`` patches (time, down, right), of which ``merge * merge`` make a row."""
    _, height, width = grid.tolist()
    return Layout.grid(height // merge, width // merge)


def arranged(model: Any, size: Tensor, values: Tensor, newline: float = 0.0) -> Tensor:
    """Values of the tiles' patches as the rows of the image: the model's own arrangement, of any number of channels.

    Args:
        model: LLaVA-NeXT or OneVision.
        size: ``[2]`` height and width of the picture in pixels.
        values: ``[tiles, patches, C]``, tile 0 is the thumbnail.
        newline: the value of row separators.

    Returns:
        ``[N, C]`` float32. Between pixels that OneVision scales down they are interpolated.
    """
    separator = torch.full((values.shape[-1],), newline, device=values.device)
    shell = SimpleNamespace(config=model.config, image_newline=separator)
    options = {"image_newline": separator} if _is_onevision(model) else {}
    merge = type(model)._merge_image_patch_embeddings
    rows: Tensor = merge(shell, size, values.float(), strategy="spatial_unpad", **options)
    return rows


def tiled(model: Any, size: Tensor, tiles: int) -> Layout:
    """The layout of an image of `tiles` tiles, the thumbnail included."""
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    newline = arranged(model, size, torch.zeros(tiles, side * side, 1), newline=1.0).flatten() > 0.5
    base = Layout.grid(side, side)
    after = newline[side * side :]
    if tiles == 1:  # the separator ends the thumbnail's last row
        last = torch.tensor([side - 1])
        view, row, col = torch.zeros(1, dtype=torch.long), last, last + 1
    else:
        width = int(after.nonzero()[0]) + 1
        at = torch.arange(len(after))
        view, row, col = torch.ones_like(at), at // width, at % width
    return Layout(
        torch.cat((base.view, view)),
        torch.cat((base.row, row)),
        torch.cat((base.col, col)),
        newline,
        (1, 1) if tiles == 1 else _tile_grid(model, size),
    )


def _tile_grid(model: Any, size: Tensor) -> tuple[int, int]:
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    down, right = get_anyres_image_grid_shape(
        tuple(size.tolist()), model.config.image_grid_pinpoints, model.config.vision_config.image_size
    )
    return int(down), int(right)


def _is_onevision(model: Any) -> bool:
    return bool(model.config.model_type == "llava_onevision")
