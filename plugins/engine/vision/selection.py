"""The engine's half of a method: encode the images of a step, and pick each one's rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from thriftree.plugins.engine.vision import layout
from thriftree.plugins.engine.vision.failures import FAILURES
from thriftree.plugins.engine.vision.plan import Plan
from thriftree.plugins.engine.vision.positions import LIMIT, with_digits
from thriftree.plugins.engine.vision.tap import AttnTap
from thriftree.plugins.vision.image import Image, Layout, Selection, Tap

log = logging.getLogger(__name__)


class Selector:
    """Of one model."""

    def __init__(self, model: Any, vllm_config: Any) -> None:
        """`model`: one of `families`; its tower is read, its language model embeds questions."""
        self.model = model
        self.family = model.thrift_family
        config = vllm_config.model_config.hf_config
        self.width: int = vllm_config.model_config.get_hidden_size()  # of a row without what rides on it
        self.merge: int = getattr(config.vision_config, "spatial_merge_size", 1)
        levels = len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())
        self.full_width = self.width * (1 + levels)  # of a row of the tower
        self.budget: int = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.ranks: int = vllm_config.parallel_config.tensor_parallel_size
        self.tap = AttnTap.of(model, vllm_config)

    def embed(self, plans: Sequence[Plan], inputs: Mapping[str, Any], encode: Callable[..., Any]) -> list[Tensor]:
        """The rows that the language model gets, ``[keep, C]`` for each image.

        vLLM fills a step by the rows that stay. The tower works on all of them, so a step may hold more images than the
        tower's memory was measured for: it gets them in parts.

        Args:
            inputs: the batch's processed inputs.
            encode: the model's own `embed_multimodal`.
        """
        rows: list[Tensor] = []
        for start, end in parts([plan.rows for plan in plans], self.budget):
            part = inputs if end - start == len(plans) else self._sliced(inputs, start, end)
            rows += self._embed(plans[start:end], part, encode)
        return rows

    def _embed(self, plans: Sequence[Plan], inputs: Mapping[str, Any], encode: Callable[..., Any]) -> list[Tensor]:
        tower = self.tap.tower if self.tap is not None else None
        wanted = [plan.method.taps(tower) if plan.prunes and tower is not None else () for plan in plans]
        nothing: list[dict[Tap, Tensor]] = [{} for _ in plans]
        reading: Any = self.tap.armed(wanted, inputs) if self.tap is not None else nullcontext(nothing)
        with reading as taps:
            whole: list[Tensor] = list(encode(**inputs))
        for index, plan in enumerate(plans):
            if plan.prunes:
                whole[index] = self._pruned(plan, whole[index], inputs, index, taps[index])
        return whole

    def _pruned(
        self, plan: Plan, rows: Tensor, inputs: Mapping[str, Any], index: int, taps: Mapping[Tap, Tensor]
    ) -> Tensor:
        if len(rows) != plan.rows:
            raise RuntimeError(f"the vision tower gave {len(rows)} rows, and {plan.rows} were counted on")
        place = self._layout(inputs, index, plan)
        here = {name: getattr(place, name).to(rows.device) for name in ("view", "row", "col", "newline")}
        place = replace(place, **here)
        text = self._text(plan) if plan.method.needs_text else None
        lined_up = self._lined_up(inputs, index, taps)
        image = Image(rows[:, : self.width], plan.keep, place, lined_up, text, plan.seed)
        chosen = self._agreed(plan, image, _picked(plan, image))
        kept = rows[chosen.rows]
        if chosen.features is not None:
            kept[:, : self.width] = chosen.features.to(kept)
        if self.family.mrope:
            offsets = torch.stack((place.row, place.col), dim=1)[chosen.rows]
            kept = with_digits(kept, offsets.clamp(max=LIMIT - 1))
        return kept

    def _lined_up(self, inputs: Mapping[str, Any], index: int, taps: Mapping[Tap, Tensor]) -> dict[Tap, Tensor]:
        """Readings row by row; those of tiles are laid out as the model lays out the tiles themselves."""
        if self.family.layout != "tiles":
            return dict(taps)
        size = inputs["image_sizes"][index].cpu()
        found = {}
        for tap, values in taps.items():
            wide = values if values.ndim == 3 else values[..., None]
            found[tap] = layout.arranged(self.model, size, wide).flatten(values.ndim - 2)
        return found

    def _text(self, plan: Plan) -> Tensor:
        ids = torch.tensor(plan.question, device=next(self.model.parameters()).device)
        embedded: Tensor = self.model.get_language_model().embed_input_ids(ids)
        return embedded

    def _agreed(self, plan: Plan, image: Image, chosen: Selection) -> Selection:
        """The first rank's choice: scores differ by rounding from rank to rank, and rows that differ are wrong rows."""
        if self.ranks == 1:
            return chosen
        from vllm.distributed.parallel_state import get_tp_group

        group, features = get_tp_group(), chosen.features
        if plan.method.merges:  # whether it failed here or there
            features = image.features[chosen.rows] if features is None else features.to(image.features)
            features = group.broadcast(features.contiguous())
        return Selection(group.broadcast(chosen.rows.contiguous()), features)

    def _layout(self, inputs: Mapping[str, Any], index: int, plan: Plan) -> Layout:
        if self.family.layout == "grid":
            return layout.of_grid(inputs["image_grid_thw"][index], self.merge)
        if self.family.layout == "tiles":
            return layout.tiled(self.model, inputs["image_sizes"][index].cpu(), len(inputs["pixel_values"][index]))
        return layout.square(plan.rows)

    def _sliced(self, inputs: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
        """The inputs of some images: Qwen's pixels lie one image after the other, all else has a place for each."""
        grids = inputs.get("image_grid_thw")
        cut = {}
        for name, values in inputs.items():
            if grids is not None and name in ("pixel_values", "image_embeds"):
                sizes = grids.prod(-1) // (self.merge**2 if name == "image_embeds" else 1)
                first = int(sizes[:start].sum())
                cut[name] = values[first : first + int(sizes[start:end].sum())]
            else:
                cut[name] = values[start:end]
        return cut


def parts(rows: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Runs ``(start, end)`` of images with at most `budget` rows together, or one image."""
    start = total = 0
    for index, count in enumerate(rows):
        if index > start and total + count > budget:
            yield start, index
            start, total = index, 0
        total += count
    yield start, len(rows)


def _picked(plan: Plan, image: Image) -> Selection:
    """The method's rows. One that fails costs its image quality, not everybody the engine: evenly spaced rows stay."""
    total = len(image.features)
    try:
        chosen = plan.method.pick(image)
        rows = chosen.rows
        if len(rows) != plan.keep or (len(rows) > 1 and int(rows.diff().min()) < 1):
            raise ValueError(f"{len(rows)} rows instead of {plan.keep}, or not in their order")
        if int(rows[0]) < 0 or int(rows[-1]) >= total:
            raise ValueError(f"rows outside of 0..{total - 1}")
        return Selection(rows.to(image.features.device), chosen.features)
    except Exception:
        FAILURES[plan.name] += 1
        log.exception("visual-token method %s failed; evenly spaced rows of the image are kept instead", plan.vision)
        return Selection(torch.arange(plan.keep, device=image.features.device) * total // plan.keep)
