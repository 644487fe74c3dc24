"""`random`: the control that a method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.hashing import mix, uniform
from thriftree.plugins.vision.base import Method
from thriftree.plugins.vision.image import Image


@dataclass(frozen=True)
class Random(Method):
    """Keep rows at random.

    A control, no paper. The score of a row is a hash of (the image's seed, its place): nothing is drawn.
    """

    def score(self, image: Image) -> Tensor:
        return uniform(mix(image.seed, torch.arange(image.features.shape[0])))
