"""Does the reference do what it says? Without an engine, against transformers' own forward with rows masked out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from thriftree.plugins.vision.image import Selection
from thriftree.zoo import tiny_vision

from .images import picture
from .reference import Prompt, Reference, Seen
from .scenarios import FAMILIES, TOLERANCE, ids_of

pytestmark = pytest.mark.engine
Load = Callable[[str], Reference]
_loaded: dict[str, Reference] = {}
IMAGES = (picture(1, 168, 168), picture(2, 300, 140))


@pytest.fixture
def load() -> Load:
    def once(family: str) -> Reference:
        if family not in _loaded:
            _loaded[family] = Reference(str(tiny_vision.ensure(family)))
        return _loaded[family]

    return once


def prompt_ids(reference: Reference, family: str, text: str = "a * and * so?") -> list[int]:
    return ids_of(reference.processor.tokenizer, family, text)


def half(seen: Seen, seed: int) -> Selection:
    rows = len(seen.features)
    chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[: max(1, rows // 3)]
    return Selection(chosen.sort().values)


@torch.no_grad()
def masked(reference: Reference, prompt: Prompt, visible: Tensor, positions: Tensor) -> Tensor:
    """Log-probabilities after a prompt with all its rows, some of which nobody may look at."""
    extra: dict[str, Any] = {}
    if prompt.deep:
        extra = {"visual_pos_masks": prompt.is_image[None], "deepstack_visual_embeds": list(prompt.deep)}
    hidden = reference.model.model.language_model(
        inputs_embeds=prompt.embeds[None],
        attention_mask=visible[None].long(),
        position_ids=positions[:, None] if reference.mrope else positions,
        use_cache=False,
        **extra,
    ).last_hidden_state[0, -1]
    row: Tensor = reference.model.lm_head(hidden).log_softmax(-1)
    return row


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_go_are_rows_that_nobody_sees(load: Load, family: str) -> None:
    reference = load(family)
    ids, seen = prompt_ids(reference, family), [reference.see(image) for image in IMAGES]
    choices = [half(one, i) for i, one in enumerate(seen)]
    whole, pruned = reference.lay_out(ids, seen), reference.lay_out(ids, seen, choices)
    visible = ~whole.is_image
    rows = whole.is_image.nonzero().flatten()
    visible[rows[torch.cat((choices[0].rows, choices[1].rows + len(seen[0].features)))]] = True
    assert int(visible.sum()) == len(pruned) < len(whole)
    # What stays stands where it stood (M-RoPE), or moves up (a place in the sequence is all there is).
    positions = whole.positions if reference.mrope else (visible.long().cumsum(0) - 1).clamp(min=0)[None]
    answer = reference.generate(pruned, 1).logprobs[0]
    assert (masked(reference, whole, visible, positions) - answer).abs().max() < TOLERANCE
    assert (masked(reference, whole, torch.ones_like(visible), whole.positions) - answer).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_unpruned_is_what_transformers_generates(load: Load, family: str) -> None:
    """One image: with two, transformers shows LLaVA-OneVision each at low resolution, and vLLM does not."""
    reference = load(family)
    mark = tiny_vision.FAMILIES[family].image
    inputs = reference.processor(text=f"a {mark} so?", images=[IMAGES[0]], return_tensors="pt")
    stops = {"eos_token_id": -1, "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    out = reference.model.generate(**inputs, **stops)[0, inputs["input_ids"].shape[1] :].tolist()
    assert reference.answer(prompt_ids(reference, family, "a * so?"), IMAGES[:1], tokens=6).tokens == out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_matters(load: Load, family: str) -> None:
    """So a test of equality sees one wrong row: it moves log-probabilities by far more than rounding does."""
    reference = load(family)
    ids, seen = prompt_ids(reference, family, "a * so?"), reference.see(IMAGES[1])
    rows = torch.arange(len(seen.features))
    right = reference.generate(reference.lay_out(ids, [seen]), 1).logprobs
    for row in rows[:: max(1, len(rows) // 40)]:
        features = seen.features.clone()
        features[row] = seen.features[(row + 1) % len(rows)]
        other = reference.generate(reference.lay_out(ids, [seen], [Selection(rows, features)]), 1).logprobs
        assert (other - right).abs().max() > 100 * TOLERANCE, f"row {int(row)}"


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("qwen")])
@pytest.mark.parametrize("wrong", ["packed", "next"])
def test_positions_matter(load: Load, family: str, wrong: str) -> None:
    """Positions of a prompt that never had the other rows, or a next token that follows the pruned one."""
    reference = load(family)
    ids, seen = prompt_ids(reference, family), [reference.see(image) for image in IMAGES]
    right = reference.lay_out(ids, seen, [half(one, i) for i, one in enumerate(seen)])
    packed = torch.arange(len(right)).expand(3, -1)
    positions, after = (packed, right.next) if wrong == "packed" else (right.positions, len(right))
    other = Prompt(right.embeds, positions, after, right.is_image, right.deep)
    moved = (reference.generate(other, 2).logprobs - reference.generate(right, 2).logprobs).abs().amax(-1)
    assert moved[1 if wrong == "next" else 0] > 100 * TOLERANCE


def test_deepstack_follows_the_rows(load: Load) -> None:
    reference = load("qwen3-vl")
    ids, seen = prompt_ids(reference, "qwen3-vl", "a * so?"), reference.see(IMAGES[1])
    choice = half(seen, 1)
    right = reference.lay_out(ids, [seen], [choice])
    assert len(right.deep) == 2
    first = tuple(layer[: len(choice.rows)] for layer in seen.deep)  # the mistake: the image's first rows
    other = Prompt(right.embeds, right.positions, right.next, right.is_image, first)
    moved = reference.generate(other, 1).logprobs - reference.generate(right, 1).logprobs
    assert moved.abs().max() > 100 * TOLERANCE
