"""What a method sees of one request's cache in one layer. Tensors only; the engine fills it, and so does a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """The rotation that a model puts on queries and keys (the first ``2 * len(frequencies)`` channels)."""

    frequencies: Tensor  # [R] angle per position
    interleaved: bool = False  # pairs are (2i, 2i + 1) and not (i, i + R)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x [..., n, D]`` turned by ``positions [n]`` (negative ones undo a rotation)."""
        half = self.frequencies.shape[0]
        angle = positions[:, None].to(x.dtype) * self.frequencies.to(x.dtype)
        cos, sin = angle.cos(), angle.sin()
        turned, rest = x[..., : 2 * half], x[..., 2 * half :]
        if self.interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
            out = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = turned[..., :half], turned[..., half:]
            out = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((out, rest), dim=-1)


@dataclass
class Rows:
    """The cached rows of one layer. ``H`` KV heads, ``G`` query heads per KV head, ``M`` rows, ``D`` channels.

    Row `j` of head `h` holds the token of position ``pos[h, j]``; rows are in slot order, which is not the order of
    positions once rows have been moved, and heads may hold different tokens.
    """

    pos: Tensor  # [H, M] int64
    length: int  # tokens that the request has had so far: the newest row is at ``length - 1``
    prompt: int  # of these, the prompt's
    keep: int  # rows that every head will keep
    layer: int = 0
    layers: int = 1
    first_head: int = 0  # the model's KV head that head 0 here is: ranks have a part each, or heads come one by one
    scale: float = 1.0  # of the logits, as the model's attention has it
    seed: int = 0
    rope: Rope | None = None
    read_keys: Callable[[], Tensor] | None = None  # [H, M, D], rotated, as cached
    read_values: Callable[[], Tensor] | None = None  # [H, M, D]
    queries: Tensor | None = None  # [H, G, W, D] newest queries, rotated, oldest first (`Method.window` at most)
    sums: Tensor | None = None  # [H, M] `Method.weigh` added up over all query rows so far (`Method.observes`)

    @cached_property
    def keys(self) -> Tensor:
        assert self.read_keys is not None
        return self.read_keys().float()

    @cached_property
    def values(self) -> Tensor:
        assert self.read_values is not None
        return self.read_values().float()

    @cached_property
    def query_pos(self) -> Tensor:
        """``[W]`` positions of `queries`."""
        assert self.queries is not None
        return torch.arange(self.length - self.queries.shape[2], self.length)

    @property
    def age(self) -> Tensor:
        """``[H, M]`` 0 for the newest token."""
        return self.length - 1 - self.pos
