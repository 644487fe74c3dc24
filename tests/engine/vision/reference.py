"""What a pruned request must answer: transformers' own model, given the rows that a selection keeps.

No line is shared with the engine's side. Rows are computed image by image; M-RoPE positions are those of the prompt
with all rows, less the columns of rows that went; the next token's position follows the unpruned prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from thriftree.plugins.vision.image import Selection


@dataclass(frozen=True)
class Seen:
    """One image behind the projector."""

    features: Tensor  # [N, D]
    deep: tuple[Tensor, ...] = ()  # Qwen3-VL: [N, D] for each of the language model's first layers
    grid: Tensor | None = None  # [3] Qwen: frames, rows and columns of patches before they are merged 2 x 2

    def pick(self, selection: Selection | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Rows that the language model gets, and what deepstack adds to them (of a merged row: its anchor's)."""
        if selection is None:
            return self.features, self.deep
        rows = self.features[selection.rows] if selection.features is None else selection.features
        assert rows.shape[0] == selection.rows.shape[0]
        return rows, tuple(layer[selection.rows] for layer in self.deep)


@dataclass(frozen=True)
class Prompt:
    """A prompt laid out for the language model."""

    embeds: Tensor  # [L, D]
    positions: Tensor  # [3, L] (M-RoPE) or [1, L]
    next: int  # position of the first token after it
    is_image: Tensor  # [L] bool
    deep: tuple[Tensor, ...] = ()  # [rows of all images, D] each

    def __len__(self) -> int:
        return self.embeds.shape[0]


@dataclass(frozen=True)
class Reply:
    """A greedy answer."""

    tokens: list[int]
    logprobs: Tensor  # [tokens, vocabulary]


Selections = Sequence[Selection | None] | None


class Reference:
    """A vision model of `zoo/tiny_vision.py` (or another of its six families) in transformers, float32."""

    def __init__(self, path: str) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(path)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        config = self.model.config
        self.image_token: int = config.image_token_id
        self.mrope = hasattr(self.model.model, "get_rope_index")

    @torch.no_grad()
    def see(self, image: Image) -> Seen:
        """All rows of one image, as an unpruned request has them."""
        pixels = dict(self.processor.image_processor(images=[image.convert("RGB")], return_tensors="pt"))
        out = self.model.get_image_features(**pixels, return_dict=True)
        deep = tuple(layer[0] for layer in getattr(out, "deepstack_features", None) or ())
        grid = pixels["image_grid_thw"][0] if "image_grid_thw" in pixels else None
        return Seen(out.pooler_output[0], deep, grid)

    def lay_out(self, ids: Sequence[int], seen: Sequence[Seen], selections: Selections = None) -> Prompt:
        """`ids` with one image token for each image, as a request has them.

        `selections`: one for each image, None for an image that keeps all its rows.
        """
        choices = selections if selections is not None else [None] * len(seen)
        given = torch.tensor(ids)
        assert int((given == self.image_token).sum()) == len(seen) == len(choices)
        counts = torch.ones(len(ids), dtype=torch.long)
        counts[given == self.image_token] = torch.tensor([one.features.shape[0] for one in seen], dtype=torch.long)
        whole = given.repeat_interleave(counts)
        is_image = whole == self.image_token
        kept = torch.ones(len(whole), dtype=torch.bool)
        kept[is_image] = torch.cat(
            [_mask(one, choice) for one, choice in zip(seen, choices, strict=True)] or [kept[:0]]
        )
        picked = [one.pick(choice) for one, choice in zip(seen, choices, strict=True)]
        with torch.no_grad():
            embeds = self.model.get_input_embeddings()(whole[kept]).clone()
        if picked:
            embeds[is_image[kept]] = torch.cat([rows for rows, _ in picked])
        deep = tuple(torch.cat(layer) for layer in zip(*(extra for _, extra in picked), strict=True))
        positions = self._positions(whole, is_image, seen)
        after = int(positions.max()) + 1
        if not self.mrope:  # there a position is nothing but a place in what the language model reads
            positions, after = torch.arange(len(embeds))[None], len(embeds)
            return Prompt(embeds, positions, after, is_image[kept], deep)
        return Prompt(embeds, positions[:, kept], after, is_image[kept], deep)

    def _positions(self, whole: Tensor, is_image: Tensor, seen: Sequence[Seen]) -> Tensor:
        if not self.mrope or not seen:
            return torch.arange(len(whole)).expand(3 if self.mrope else 1, -1)
        grids = torch.stack([one.grid for one in seen if one.grid is not None])
        found, _ = self.model.model.get_rope_index(whole[None], is_image[None].int(), image_grid_thw=grids)
        positions: Tensor = found[:, 0]
        return positions

    @torch.no_grad()
    def generate(self, prompt: Prompt, tokens: int = 8) -> Reply:
        """Greedy; an end mark does not end it."""
        cache = DynamicCache(config=self.model.config.get_text_config())
        extra: dict[str, Any] = {}
        if prompt.deep:
            extra = {"visual_pos_masks": prompt.is_image[None], "deepstack_visual_embeds": list(prompt.deep)}
        embeds, positions = prompt.embeds[None], prompt.positions
        out: list[int] = []
        steps = []
        while len(out) < tokens:
            hidden = self.model.model.language_model(
                inputs_embeds=embeds,
                position_ids=positions[:, None] if self.mrope else positions,
                past_key_values=cache,
                use_cache=True,
                **extra,
            ).last_hidden_state[0, -1]
            steps.append(self.model.lm_head(hidden).float().log_softmax(-1))
            out.append(int(steps[-1].argmax()))
            embeds = self.model.get_input_embeddings()(torch.tensor([[out[-1]]]))
            positions = torch.full((positions.shape[0], 1), prompt.next + len(out) - 1)
            extra = {}
        return Reply(out, torch.stack(steps))

    def answer(
        self, ids: Sequence[int], images: Sequence[Image] = (), selections: Selections = None, tokens: int = 8
    ) -> Reply:
        """All of it: `ids` with one image token for each of `images`."""
        return self.generate(self.lay_out(ids, [self.see(image) for image in images], selections), tokens)


def _mask(seen: Seen, choice: Selection | None) -> Tensor:
    """``[N]`` bool: which of an image's rows stay."""
    if choice is None:
        return torch.ones(seen.features.shape[0], dtype=torch.bool)
    assert torch.equal(choice.rows, choice.rows.unique()), "rows are ascending, and no row is there twice"
    mask = torch.zeros(seen.features.shape[0], dtype=torch.bool)
    mask[choice.rows] = True
    return mask
