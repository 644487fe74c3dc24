"""The interface of every visual-token method: which rows of an image the language model gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor
from typing import Any, ClassVar

import torch
from torch import Tensor

from thriftree.plugins.vision.image import Image, Selection, Tap, Tower

#: Metadata of a parameter that names a layer of the vision tower.
LAYER: dict[str, Any] = {
    "minimum": -64,
    "maximum": 63,
    "description": "layer of the vision tower that is read, negative: from the checkpoint's end; the nearest readable",
}


def kept(rows: int, keep: float | None, keep_tokens: int | None) -> int:
    """How many of an image's `rows` stay. The front end (placeholders) and the engine (selection) both ask here.

    `keep` is a share, rounded to the nearest count (halves up), at least 1; `keep_tokens` more than there are: all.
    """
    if keep_tokens is not None:
        return min(rows, keep_tokens)
    return rows if keep is None else min(rows, max(1, floor(keep * rows + 0.5)))


def best(scores: Tensor, count: int) -> Tensor:
    """``[count]`` int64, ascending: where the highest of ``scores [N]`` are; of equal ones the first."""
    order = torch.sort(scores.float(), descending=True, stable=True).indices
    return order[:count].sort().values


@dataclass(frozen=True)
class Method:
    """A method is its configuration: a frozen dataclass, one file. It holds no state.

    The count is fixed before the image is encoded (the prompt is laid out then), so a method chooses which rows, not
    how many. `pick` is what the engine calls; `select` or, for most, `score` is what a method writes.
    """

    paper: ClassVar[str] = ""
    #: `Image.text` is read: the choice depends on the question, so two questions on an image share no cache.
    needs_text: ClassVar[bool] = False
    #: Rows come back changed: others were merged into them.
    merges: ClassVar[bool] = False

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        """Readings of the vision tower that `select` finds in `Image.taps`."""
        return ()

    def check(self, tower: Tower | None) -> None:
        """Called with the model's tower (None: its attention cannot be read) before a request is taken.

        Raises:
            ValueError: the method does not fit; the message starts with the parameter's name, or with ``method``.
        """
        if tower is None and self.taps(Tower(layers=24)):
            raise ValueError("method: it reads the attention of the vision tower, which this model does not give")

    def score(self, image: Image) -> Tensor:
        """``[N]``; the highest stay, of equal ones the first."""
        raise NotImplementedError

    def select(self, image: Image) -> Selection:
        """`Image.keep` rows of an image in which every row is a patch."""
        return Selection(best(self.score(image), image.keep))

    def pick(self, image: Image) -> Selection:
        """`select` for any image: all rows where all are kept, and row separators apart from patches.

        Separators all stay where they take at most a quarter of the budget, else all go: they tell the language model
        where a row of patches ends, which matters as long as rows are there.
        """
        total = image.features.shape[0]
        if image.keep >= total:
            return Selection(torch.arange(total))
        newline = image.layout.newline
        separators, patches = newline.nonzero().flatten(), (~newline).nonzero().flatten()
        if len(separators) == 0:
            return self.select(image)
        room = len(separators) if 4 * len(separators) <= image.keep else 0
        wanted = min(len(patches), image.keep - room)
        whole = wanted == len(patches)
        chosen = Selection(torch.arange(wanted)) if whole else self.select(_part(image, patches, wanted))
        rows, features = patches[chosen.rows], chosen.features
        features = image.features[rows] if features is None else features
        extra = separators[: image.keep - wanted]
        order = torch.cat((rows, extra)).argsort()
        return Selection(torch.cat((rows, extra))[order], torch.cat((features, image.features[extra]))[order])


def _part(image: Image, rows: Tensor, keep: int) -> Image:
    taps = {tap: values[rows] for tap, values in image.taps.items()}
    return replace(image, features=image.features[rows], keep=keep, layout=image.layout.pick(rows), taps=taps)
