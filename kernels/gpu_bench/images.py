"""Choices among an image's rows and readings of its tower; a CLIP ViT-L/14-336 of random weights beside them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from thriftree.kernels import vision_scores, vision_select
from thriftree.kernels.gpu_bench.clock import Call, Row, apart
from thriftree.kernels.vision_select import reference

#: Rows of one tile of CLIP ViT-L/14 at 336 x 336 pixels.
TILE = 576
#: Channels of a row of a 7B model.
DIM = 4096


def choices() -> Iterator[Row]:
    """Picks among 576 rows (one tile) or 2880 (five), for one image and for eight."""
    generator = torch.Generator("cuda").manual_seed(0)
    for images in (1, 8):
        for count in (TILE, 5 * TILE):
            values = torch.randn(images, count, DIM, generator=generator, device="cuda")
            units = list(torch.nn.functional.normalize(values, dim=-1).bfloat16())
            for k in (64, 128, 288):
                fast = partial(each, partial(vision_select.max_min, k=k), units)
                slow = partial(each, partial(reference.max_min, k=k, first=None), units)
                what = f"{k} of {count}, {images} image{'s' * (images > 1)}"
                yield Row(f"max-min, {what}", fast, slow, partial(same, fast, slow), images * count // TILE)
                fast = partial(each, partial(vision_select.greedy_dpp, quality=None, k=k), units)
                slow = partial(each, partial(reference.greedy_dpp, quality=None, k=k), units)
                yield Row(f"DPP, {what}", fast, slow, partial(same, fast, slow), images * count // TILE)


def each(choose: partial[Tensor], units: list[Tensor]) -> Tensor:
    return torch.stack([choose(unit) for unit in units])


def same(fast: partial[Tensor], slow: partial[Tensor]) -> str:
    return f"{float((fast() == slow()).float().mean()):.0%} the same picks"


def readings() -> Iterator[Row]:
    """Column sums of a layer's attention, of the CLS row or of all rows: 16 heads x 64, bfloat16."""
    generator = torch.Generator("cuda").manual_seed(0)
    for lengths in ([TILE + 1], [TILE + 1] * 8, [5 * TILE]):
        q, k = torch.randn(2, sum(lengths), 16, 64, generator=generator, device="cuda").bfloat16()
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        for what, rows in (("CLS row", 1), ("all rows", None)):
            fast = partial(vision_scores.column_sums, q, k, starts, 0.125, rows=rows)
            slow = partial(eager, q, k, starts, 0.125, rows)
            name = f"attention, {what}, {len(lengths)} x {lengths[0]}"
            yield Row(name, fast, slow, apart(fast, slow), sum(lengths) // TILE)


def eager(q: Tensor, k: Tensor, starts: Sequence[int], scale: float, rows: int | None) -> Tensor:
    """The whole attention of each sequence, in bfloat16 up to the softmax."""
    sums = []
    for start, end in pairwise(starts):
        queries = q[start : end if rows is None else start + rows].transpose(0, 1)
        logits = queries @ k[start:end].permute(1, 2, 0) * scale
        sums.append(torch.softmax(logits, -1, dtype=torch.float32).sum((0, 1)))
    return torch.cat(sums)


def tower() -> torch.nn.Module | None:
    """CLIP ViT-L/14-336 in bfloat16; None without transformers."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import CLIPVisionConfig, CLIPVisionModel

    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("cuda"):
        return CLIPVisionModel(CLIPVisionConfig(**shape, image_size=336, patch_size=14)).bfloat16().eval()


def encode(model: torch.nn.Module, tiles: int) -> Call:
    pixels = torch.randn(tiles, 3, 336, 336, device="cuda").bfloat16()
    return torch.inference_mode()(partial(model, pixels))
