"""Readings of the vision tower's attention: queries and keys are looked at as they pass, and no matrix is kept.

A reading lines up with the rows that leave the projector. With tensor parallelism each rank has some of the heads, so
sums go round the ranks; all ranks must arm alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thriftree.kernels import vision_scores
from thriftree.plugins.engine.vision.towers import attention_layers, tower, visual_of, windows_of
from thriftree.plugins.vision.image import Tap, Tower

__all__ = ["AttnTap", "Sight", "sights"]

log = logging.getLogger(__name__)
Readings = dict[Tap, Tensor]


@dataclass(frozen=True)
class Sight:
    """How one image comes through the tower."""

    sequences: int = 1  # that attend for themselves: tiles, frames
    length: int | None = None  # patches of each (None: what the batch has)
    grid: tuple[int, int, int] | None = None  # Qwen: frames, rows and columns of patches
    tiled: bool = False


def sights(inputs: Mapping[str, Any]) -> list[Sight]:
    """The images of a batch of processed inputs, as the model's `embed_multimodal` gets them."""
    grids = inputs.get("image_grid_thw")
    if grids is not None:
        return [Sight(t, h * w, (t, h, w)) for t, h, w in torch.as_tensor(grids).tolist()]
    pixels = inputs.get("pixel_values")
    if pixels is None:
        return []
    return [Sight(len(one), tiled=True) if one.ndim == 4 else Sight() for one in pixels]


class AttnTap:
    """Of one model. Nothing of it is in the model's way unless it is armed."""

    def __init__(
        self,
        layers: Sequence[torch.nn.Module],
        tower: Tower,
        *,
        ranks: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
        merge: int = 1,
        windows: Callable[[int, int, int], Tensor] | None = None,
    ) -> None:
        """`AttnTap.of` makes one of a model.

        Args:
            layers: the tower's attention modules: called with query, key, value; they have `num_heads`, `head_size`,
                `num_kv_heads` and `scale`.
            ranks: over which the heads are spread evenly.
            reduce: adds up what the ranks have.
            merge: patches that follow each other and become one row.
            windows: the order in which rows of a ``(frames, rows, columns)`` grid of patches go through the tower.
        """
        self.tower = tower
        self._layers, self._ranks, self._reduce = list(layers), ranks, reduce
        self._merge, self._windows = merge, windows

    @classmethod
    def of(cls, model: Any, vllm_config: Any) -> AttnTap | None:
        """None: its attention cannot be read (`towers.unreadable` says why)."""
        found = tower(model, vllm_config)
        if found is None:
            return None
        from vllm.distributed import tensor_model_parallel_all_reduce

        ranks = vllm_config.parallel_config.tensor_parallel_size
        visual = visual_of(model)
        return cls(
            attention_layers(visual),
            found,
            ranks=ranks,
            reduce=tensor_model_parallel_all_reduce if ranks > 1 else None,
            merge=getattr(visual, "spatial_merge_size", 1) ** 2,
            windows=windows_of(visual),
        )

    @contextmanager
    def armed(self, wanted: Sequence[Collection[Tap]], inputs: Mapping[str, Any]) -> Iterator[list[Readings]]:
        """Read what the tower encodes inside the block.

        Args:
            wanted: for each image of the batch. An image for which nothing is wanted costs nothing.
            inputs: the batch's processed inputs.

        Yields:
            For each image what was wanted, filled when the block ends: float32 ``[N]`` or ``[N, C]`` for the N rows of
            the projector in their order; with tiles ``[tiles, N]`` or ``[tiles, N, C]``, padding tiles (the last)
            included. What could not be read, which is logged, or did not pass the tower is missing.

        Raises:
            ValueError: a layer that does not run, or does not see the whole image.
        """
        found: list[Readings] = [{} for _ in wanted]
        images = sights(inputs)
        if not any(wanted) or not images:
            yield found
            return
        for tap in {tap for taps in wanted for tap in taps}:
            self._check(tap)
        recorders = {
            layer: _Recorder([[tap for tap in taps if tap.layer == layer] for taps in wanted], images, self._read)
            for layer in sorted({tap.layer for taps in wanted for tap in taps})
        }
        handles = [
            self._layers[layer].register_forward_pre_hook(recorder, with_kwargs=True)
            for layer, recorder in recorders.items()
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
        for recorder in recorders.values():
            for index, (image, parts) in enumerate(zip(images, recorder.parts, strict=True)):
                found[index] |= {tap: self._rows(image, values) for tap, values in parts.items()}

    def _check(self, tap: Tap) -> None:
        if not 0 <= tap.layer < len(self._layers) or (self.tower.whole and tap.layer not in self.tower.whole):
            readable = self.tower.whole or f"0..{len(self._layers) - 1}"
            raise ValueError(f"layer {tap.layer} of the vision tower cannot be read, only {readable}")

    def _read(self, tap: Tap, module: Any, q: Tensor, k: Tensor, starts: list[int]) -> Tensor:
        return vision_scores.read(
            tap.reading,
            q,
            k,
            starts,
            module.scale,
            cls=self.tower.cls,
            threshold=tap.threshold,
            heads=self._ranks * q.shape[1],
            reduce=self._reduce,
        )

    def _rows(self, image: Sight, parts: list[Tensor]) -> Tensor:
        if image.tiled:
            return torch.stack(parts)
        values = torch.cat(parts)
        if self._merge > 1:
            values = values.unflatten(0, (-1, self._merge)).mean(1)
        if self._windows is None or image.grid is None:
            return values
        order = self._windows(*image.grid).to(values.device)
        return torch.empty_like(values).index_copy_(0, order, values)


class _Recorder:
    """The hook of one layer. Sequences come in the order of the images, in one call or in several."""

    def __init__(self, wanted: Sequence[Collection[Tap]], images: Sequence[Sight], read: Callable[..., Tensor]) -> None:
        if len(wanted) != len(images):
            raise ValueError(f"readings of {len(wanted)} images are wanted, and {len(images)} come")
        self.parts: list[dict[Tap, list[Tensor]]] = [{} for _ in images]
        self._wanted, self._images, self._read = wanted, images, read
        self._owners = [index for index, image in enumerate(images) for _ in range(image.sequences)]
        self._seen = 0
        every = {tap for taps in wanted for tap in taps}
        self._taps = sorted(every, key=lambda tap: (tap.reading, tap.threshold))  # on all ranks alike

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before the module's forward. An image that cannot be read costs itself quality, not the batch its rows."""
        try:
            q, k = _queries_and_keys(module, *args, **kwargs)
            owners, lengths = self._arrived(len(q), (args[0] if args else kwargs["query"]).shape[0])
            for tap in self._taps:
                self._record(tap, module, q, k, owners, lengths)
        except Exception:
            log.exception("the attention of the vision tower could not be read")
            self.parts = [{} for _ in self._images]
            self._taps = []

    def _arrived(self, rows: int, batch: int) -> tuple[list[int], list[int]]:
        """Images and lengths of the sequences of a call with so many rows."""
        owners: list[int] = []
        lengths: list[int] = []
        while sum(lengths) < rows:
            owner = self._owners[self._seen]
            owners.append(owner)
            lengths.append(self._images[owner].length or rows // batch)
            self._seen += 1
        if sum(lengths) != rows:
            raise RuntimeError(f"sequences of {lengths} rows do not make {rows}")
        return owners, lengths

    def _record(self, tap: Tap, module: Any, q: Tensor, k: Tensor, owners: list[int], lengths: list[int]) -> None:
        mine = [at for at, owner in enumerate(owners) if tap in self._wanted[owner]]
        if not mine:
            return
        if len(mine) < len(owners):
            q, k = (torch.cat([part for at, part in enumerate(t.split(lengths)) if at in mine]) for t in (q, k))
        each = torch.tensor([0] + [lengths[at] for at in mine])
        values = self._read(tap, module, q, k, each.cumsum(0).tolist())
        without_cls = (sum(lengths[at] for at in mine) - len(values)) // len(mine)
        parts = values.split([lengths[at] - without_cls for at in mine])
        for at, part in zip(mine, parts, strict=True):
            self.parts[owners[at]].setdefault(tap, []).append(part)


def _queries_and_keys(module: Any, query: Tensor, key: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """``[B * S, H, D]`` each from ``[B, S, H * D]`` or ``[B, S, H, D]``; a key head for each query head."""
    q, k = (t if t.ndim == 4 else t.unflatten(-1, (-1, module.head_size)) for t in (query, key))
    shared = module.num_heads // module.num_kv_heads
    return q.flatten(0, 1), (k.repeat_interleave(shared, dim=2) if shared > 1 else k).flatten(0, 1)
