"""What a method sees of one image. Tensors only; the engine fills it, and so does a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

#: What is read off a layer of the vision tower, as ``[N]`` float32 (``keys``: ``[N, C]``), mean over its heads:
#: ``cls`` attention of the CLS token to each patch (a tower without CLS gives ``received``), ``cls_logits`` the same
#: before the softmax (without CLS: the mean query's), ``received`` mean attention that a patch gets from all rows,
#: ``global`` mean attention that it gets from the rows which themselves receive over `threshold` times the mean (none
#: does: from all rows), ``keys`` the keys.
Reading = Literal["cls", "cls_logits", "received", "global", "keys"]


@dataclass(frozen=True)
class Tap:
    """One reading of one layer of the vision tower; `layer` counts from 0 at its input."""

    layer: int
    reading: Reading
    threshold: float = 0.0


@dataclass(frozen=True)
class Tower:
    """A model's vision tower, for methods that read its attention."""

    layers: int  # that run: LLaVA leaves the last one or two out
    depth: int = 0  # of the checkpoint (0: `layers`); papers count in it
    whole: tuple[int, ...] = ()  # layers whose attention sees the whole image (empty: all)
    cls: bool = False  # has a CLS token

    def layer(self, index: int) -> int:
        """A paper's layer index (negative: from the checkpoint's end) as the nearest one that can be read here."""
        wanted = index if index >= 0 else (self.depth or self.layers) + index
        readable = self.whole or tuple(range(self.layers))
        return min(readable, key=lambda layer: (abs(layer - wanted), layer))


@dataclass(frozen=True)
class Layout:
    """Where each row stands. An image is one view, or (LLaVA-NeXT, OneVision) a thumbnail and a grid of tiles."""

    view: Tensor  # [N] int64, 0: the only view or the thumbnail, 1: the tiles together
    row: Tensor  # [N] int64 in its view
    col: Tensor  # [N] int64 in its view
    newline: Tensor  # [N] bool: a row separator, no patch (its `row` is the row that it ends)
    tiles: tuple[int, int] = (1, 1)  # rows and columns of tiles in view 1

    @classmethod
    def grid(cls, height: int, width: int) -> Layout:
        """One view of ``height * width`` rows in raster order."""
        at = torch.arange(height * width)
        view = torch.zeros_like(at)
        return cls(view, at // width, at % width, view.bool())

    def pick(self, rows: Tensor) -> Layout:
        """The layout of some rows."""
        parts = {name: getattr(self, name)[rows] for name in ("view", "row", "col", "newline")}
        return replace(self, **parts)

    def shape(self, view: int = 0) -> tuple[int, int]:
        """Rows and columns of patches of a view (0, 0 where it has none)."""
        here = (self.view == view) & ~self.newline
        if not bool(here.any()):
            return 0, 0
        return int(self.row[here].max()) + 1, int(self.col[here].max()) + 1


@dataclass(frozen=True)
class Image:
    """One image between the vision tower and the language model. ``N`` rows, ``D`` channels."""

    features: Tensor  # [N, D] as the language model would get them
    keep: int  # rows that the method returns, 1..N
    layout: Layout
    taps: Mapping[Tap, Tensor] = field(default_factory=dict)  # what `Method.taps` asked for, row by row
    text: Tensor | None = None  # [T, D] embeddings of the question's tokens (`Method.needs_text`)
    seed: int = 0  # of the image and the settings: the same image gives the same rows

    def read(self, reading: Reading, nth: int = 0) -> Tensor:
        """The tap with this reading; of several (in the order of `Method.taps`) the `nth`, -1: the last."""
        return [values for tap, values in self.taps.items() if tap.reading == reading][nth]

    @property
    def unit(self) -> Tensor:
        """``[N, D]`` float32 features of length 1 (0 stays 0)."""
        return torch.nn.functional.normalize(self.features.float(), dim=-1, eps=1e-12)


@dataclass(frozen=True)
class Selection:
    """Which rows the language model gets, in their order; `features` where rows were merged into them.

    A merged row stands at the position of the row that the others were merged into.
    """

    rows: Tensor  # [k] int64, ascending, no row twice
    features: Tensor | None = None  # [k, D]; None: the rows as they are
