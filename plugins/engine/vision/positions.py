"""M-RoPE positions of kept rows: known only after encoding, so they ride on the rows as digits.

An image's kept rows get the image's first position when the request arrives, whatever is in a cache. The rows carry how
far down and right of it they stand, as two digits of base 128 for each axis: every float type holds these exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

BASE = 128
#: Channels that a row with digits has more.
CHANNELS = 4
#: Offsets from here on cannot be written.
LIMIT = BASE * BASE


def with_digits(rows: Tensor, offsets: Tensor) -> Tensor:
    """``[k, C]`` rows and ``[k, 2]`` offsets (down, right) -> ``[k, C + CHANNELS]``."""
    digits = torch.stack((offsets // BASE, offsets % BASE), dim=-1).flatten(1)
    return torch.cat((rows, digits.to(rows)), dim=1)


def without_digits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: ``[k, C]`` rows and ``[2, k]`` int64 offsets."""
    digits = rows[:, -CHANNELS:].long()
    return rows[:, :-CHANNELS], torch.stack((digits[:, 0] * BASE + digits[:, 1], digits[:, 2] * BASE + digits[:, 3]))


def strip(parts: Sequence[Tensor], width: int, places: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None]:
    """Take the digits off the rows of a step.

    Args:
        parts: ``[m, C]`` each; those wider than `width` carry digits.
        places: ``[tokens]`` bool, where the rows of all parts go, in their order.

    Returns:
        The parts, all `width` wide; and of rows with digits ``[r]`` places and ``[2, r]`` offsets (None: no such rows).
    """
    if all(part.shape[-1] == width for part in parts):
        return list(parts), None
    at = places.nonzero().flatten()
    stripped, rows, offsets, start = [], [], [], 0
    for part in parts:
        end = start + len(part)
        if part.shape[-1] != width:
            part, moved = without_digits(part)
            rows.append(at[start:end].to(part.device, non_blocking=True))
            offsets.append(moved)
        stripped.append(part)
        start = end
    return stripped, (torch.cat(rows), torch.cat(offsets, dim=1))


def pruned_positions(
    tokens: list[int],
    features: Sequence[Any],
    pruned: Sequence[tuple[int, int] | None],
    stock: Callable[[list[int], list[Any]], tuple[Tensor, int]],
) -> tuple[Tensor, int]:
    """Positions of a prompt with pruned images: those of the whole images, and only the kept rows' columns.

    Args:
        tokens: of the prompt, an image's token once for each kept row.
        features: vLLM's, by place in the prompt.
        pruned: for each feature (rows, kept), or None where all stay.
        stock: gives ``[3, tokens]`` positions of a prompt with whole images and what to add to them after it.

    Returns:
        ``[3, tokens]``: kept rows stand at their image's first position; and what to add after the prompt.
    """
    whole, moved, images = list[int](), [], []  # images: (first token, kept, dropped) in the whole prompt
    last = 0
    for feature, counts in zip(features, pruned, strict=True):
        place = feature.mm_position
        extra = 0 if counts is None else counts[0] - counts[1]
        whole += tokens[last : place.offset]
        start = len(whole)
        end = place.offset + place.length
        whole += tokens[place.offset : end] + [tokens[end - 1]] * extra
        last = end
        moved.append(replace(feature, mm_position=replace(place, offset=start, length=place.length + extra)))
        if counts is not None:
            images.append((start, counts[1], extra))
    whole += tokens[last:]
    positions, delta = stock(whole, moved)
    positions = positions.clone()
    stay = torch.ones(positions.shape[1], dtype=torch.bool)
    for start, kept, dropped in images:
        positions[:, start : start + kept] = positions[:, start : start + 1].clone()
        stay[start + kept : start + kept + dropped] = False
    return positions[:, stay], delta + len(whole) - len(tokens)
