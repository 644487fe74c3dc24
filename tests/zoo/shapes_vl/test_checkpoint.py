"""The weights in the package: of this recipe, in LLaVA-1.5's names, and right nearly always."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from thriftree.zoo import cache, shapes_vl
from thriftree.zoo.cpu_wheels import repair
from thriftree.zoo.shapes_vl import judge
from thriftree.zoo.shapes_vl.items import held_out
from thriftree.zoo.shapes_vl.train import Recipe


def test_the_weights_are_those_of_the_recipe() -> None:
    folder = shapes_vl.ensure()
    stamp = json.loads((folder / cache.STAMP).read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) < 5_000_000
    assert stamp["sha256"] == hashlib.sha256(weights).hexdigest()
    assert stamp["recipe"] == asdict(Recipe())


def test_names_and_types_of_the_weights() -> None:
    repair()
    from safetensors import safe_open

    with safe_open(shapes_vl.ensure() / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {str(file.get_slice(name).get_dtype()) for name in names} == {"BF16"}
    roots = {".".join(name.split(".")[:2]) for name in names}
    assert roots == {
        "vision_tower.vision_model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "language_model.model",
        "language_model.lm_head",
    }


def test_transformers_loads_it_and_it_answers() -> None:
    repair()
    items = held_out(112)
    assert judge.shares(items, judge.answers(shapes_vl.ensure(), items))["all"] >= 0.98
