"""What travels with an image from the front end to the engine: how many of its rows stay, and who picks them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem

from thriftree.plugins.vision import registry
from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.request import SHARED

#: Key of the plan among an image's processed inputs (and of the argument that the model gets).
PLAN = "thrift_plan"


@dataclass(frozen=True)
class Plan:
    """The front end fixes `keep` of `rows`, since the prompt is laid out then; the engine picks which."""

    rows: int  # that the vision tower gives
    keep: int  # of those, that the language model gets
    vision: str = ""  # canonical settings (`vision.request.canonical`); "" where all rows stay
    seed: int = 0  # of the image and the settings
    question: tuple[int, ...] = ()  # token ids, for methods that read them

    @property
    def prunes(self) -> bool:
        return self.keep < self.rows

    @property
    def name(self) -> str:
        """Of the method of a plan that prunes."""
        return str(json.loads(self.vision)["method"])

    @property
    def method(self) -> Method:
        """The configured method of a plan that prunes."""
        return configured(self.vision)

    def elem(self) -> MultiModalFieldElem:
        """The plan as a field of vLLM's: bytes that stay on the CPU, kept even where a prefix hit covers the image."""
        text = json.dumps([self.rows, self.keep, self.vision, self.seed, self.question])
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        return MultiModalFieldElem(data=data, field=MultiModalBatchedField(keep_on_cpu=True))


@lru_cache(maxsize=256)
def configured(vision: str) -> Method:
    """The method that canonical settings name."""
    settings = json.loads(vision)
    own = {name: value for name, value in settings.items() if name not in SHARED}
    return registry.configure(settings["method"], own)


def read(data: Tensor) -> Plan:
    """The inverse of `Plan.elem`, from ``[bytes]`` uint8."""
    rows, keep, vision, seed, question = json.loads(data.numpy().tobytes())
    return Plan(rows, keep, vision, seed, tuple(question))


def read_all(data: Sequence[Tensor] | Tensor) -> list[Plan]:
    """The plans of a batch of images, as vLLM batches them: a list, or stacked where they are equally long."""
    return [read(one) for one in data]


def plan_of(item: Any) -> Plan | None:
    """The plan in an image's processed inputs; None: it has none (a video, or nothing prunes here)."""
    if item is None or PLAN not in item:
        return None
    return read(item[PLAN].data)
