"""Requests with pruned images, and the rows that the engine picked for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from torch import Tensor

from thriftree.plugins.engine.vision import selection
from thriftree.plugins.engine.vision.plan import Plan
from thriftree.plugins.engine.vision.question import questions, special_ids
from thriftree.plugins.engine.vision.wish import WISH
from thriftree.plugins.vision.image import Image, Selection

from ..engines import Ask, Engine, engine
from .reference import Prompt, Reference, Reply
from .scenarios import SCENES, Scene, ask, flags

OPTIONS: dict[str, Any] = {"thriftree": {"vision": {}}}


@dataclass
class Picks:
    """Every choice of an engine in this process."""

    made: list[tuple[Plan, Image, Selection]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # settings of methods that raised

    def of(self, vision: Any, features: Tensor, question: tuple[int, ...]) -> Selection | None:
        """What became of an image with these rows (None: nobody picked any); `question`: for methods that read it."""
        for plan, image, chosen in reversed(self.made):
            same = len(image.features) == len(features) and (image.features - features).abs().max() < 1e-3
            asked = vision["method"] in plan.vision and _counts(plan, vision)
            if same and asked and plan.question in ((), question):
                return chosen
        return None


def _at_home(what: Any) -> Any:
    """A dataclass with its tensors on the CPU, where the reference computes."""
    tensors = {name: value.cpu() for name, value in vars(what).items() if isinstance(value, Tensor)}
    return replace(what, **tensors)


def _counts(plan: Plan, vision: dict[str, Any]) -> bool:
    count = vision.get("keep_tokens")
    return plan.keep == (count if count is not None else max(1, int(vision["keep"] * plan.rows + 0.5)))


@contextmanager
def watched() -> Iterator[Picks]:
    """Choices of engines in here are written down."""
    picks, stock = Picks(), selection._picked

    def picked(plan: Plan, image: Image) -> Selection:
        try:
            plan.method.pick(image)
        except Exception as error:
            picks.failed.append(f"{plan.vision}: {error!r}")
        chosen = stock(plan, image)
        picks.made.append((plan, _at_home(image), _at_home(chosen)))
        return chosen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_picked", picked)
        yield picks


@contextmanager
def pruning(path: str, trees: dict[str, Any] | None = None, **more: Any) -> Iterator[tuple[Engine, Picks]]:
    """An engine that prunes what requests ask for."""
    with watched() as picks, engine(path, trees, **flags(additional_config=OPTIONS, **more)) as running:
        yield running, picks


def wish(tokenizer: Any, family: str, scene: str | Scene, vision: Any, tokens: int = 8, arrives: int = 0) -> Ask:
    """A scene with settings for its images; None: it says nothing."""
    plain = ask(tokenizer, family, SCENES[scene] if isinstance(scene, str) else scene, tokens, arrives)
    return plain if vision is None else replace(plain, mm_kwargs={WISH: vision})


def _questions(reference: Reference, prompt: Sequence[int]) -> list[tuple[int, ...]]:
    config, tokenizer = reference.model.config, reference.processor.tokenizer
    frame = [getattr(config, name, -1) for name in ("vision_start_token_id", "vision_end_token_id")]
    return questions(prompt, reference.image_token, special_ids(tokenizer), frame)


def laid_out(reference: Reference, picks: Picks, asked: Ask) -> Prompt:
    """A request for the reference, given the rows that the engine picked."""
    seen = [reference.see(image) for image in asked.images]
    vision = (asked.mm_kwargs or {}).get(WISH, "off")
    if vision == "off" or vision.get("keep") == 1.0:
        choices: Sequence[Selection | None] = [None] * len(seen)
    else:
        asks = _questions(reference, asked.prompt)
        choices = [picks.of(vision, one.features, question) for one, question in zip(seen, asks, strict=True)]
        assert all(choice is not None for choice in choices), f"no rows were picked for {vision}"
    return reference.lay_out(asked.prompt, seen, choices)


def expected(reference: Reference, picks: Picks, asked: Ask) -> Reply:
    """What a request must answer, given the rows that the engine picked."""
    assert asked.params.max_tokens is not None
    return reference.generate(laid_out(reference, picks, asked), asked.params.max_tokens)
