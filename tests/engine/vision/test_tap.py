"""The tap on six families of vLLM's towers, against the attention that transformers' models compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from thriftree.plugins.engine.vision.plan import PLAN
from thriftree.plugins.engine.vision.support import tower_of
from thriftree.plugins.engine.vision.tap import AttnTap
from thriftree.plugins.engine.vision.towers import attention_layers, tower, unreadable, visual_of
from thriftree.plugins.vision.image import Reading, Tap, Tower
from thriftree.zoo import tiny_vision

from ..engines import engine
from . import scenarios
from .reference import Reference
from .scenarios import Scene, ask

pytestmark = pytest.mark.engine
READINGS: tuple[Reading, ...] = ("cls", "cls_logits", "received", "global", "keys")
THRESHOLD = 1.02
ASKED = [Scene("Two: * and *", ((168, 168), (320, 120)), seed=21), Scene("A *", ((700, 500),), seed=24)]
WINDOW = 4  # rows of the projector at a side of a window of the tiny Qwen2.5-VL
TILED = ("llava-next", "llava-onevision")
MERGE = 4  # patches of a row


class Captured:
    """What the attention layers of a transformers tower were given, by layer."""

    def __init__(self) -> None:
        self.layers: dict[int, list[tuple[Tensor, Tensor, float]]] = {}
        self._numbers: dict[int, int] = {}

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Eager attention, ``[B, H, S, D]``."""
        assert attention_mask is None
        number = self._numbers.setdefault(id(module), len(self._numbers))
        self.layers.setdefault(number, []).append((query.double(), key.double(), scaling))
        weights = (query @ key.transpose(2, 3) * scaling).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights


def reading(kind: Reading, q: Tensor, k: Tensor, scale: float, cls: bool) -> Tensor:
    """Of one sequence, ``[H, S, D]``."""
    logits = q @ k.transpose(1, 2) * scale
    shares = logits.softmax(-1)
    received = shares.mean((0, 1))
    if kind == "keys":
        found = k.mean(0)
    elif kind == "cls_logits":
        found = logits.mean(0)[0] if cls else logits.mean((0, 1))
    elif kind == "cls" and cls:
        found = shares.mean(0)[0]
    elif kind == "global":
        first = int(cls)
        rows = [r for r in range(first, len(received)) if received[r] > THRESHOLD * received[first:].mean()]
        found = shares.mean(0)[rows].mean(0)
    else:
        found = received
    return found[int(cls) :]


def in_raster_order(values: Tensor, height: int, width: int) -> Tensor:
    """Rows that come window by window."""
    cells = [
        r * width + c
        for top in range(0, height, WINDOW)
        for left in range(0, width, WINDOW)
        for r in range(top, min(top + WINDOW, height))
        for c in range(left, min(left + WINDOW, width))
    ]
    found = torch.full_like(values, torch.nan)
    found[cells] = values
    return found


def expected(path: str, family: str, image: Any, taps: Sequence[Tap], tower: Tower) -> dict[Tap, Tensor]:
    from transformers import AttentionInterface

    captured = Captured()
    AttentionInterface.register("captured", captured.attend)
    reference = Reference(path)
    reference.model.set_attn_implementation("captured")
    seen = reference.see(image)
    found = {}
    for tap in taps:
        sequences = [
            reading(tap.reading, q[i], k[i], scale, tower.cls)
            for q, k, scale in captured.layers[tap.layer]
            for i in range(len(q))
        ]
        if seen.grid is None:
            found[tap] = torch.stack(sequences) if family in TILED else sequences[0]
            continue
        (values,), (_, height, width) = sequences, seen.grid.tolist()
        values = values.unflatten(0, (-1, MERGE)).mean(1)
        found[tap] = in_raster_order(values, height // 2, width // 2) if family == "qwen2.5-vl" else values
    return found


def watched(model: Any, tap: AttnTap, wanted: Callable[[int], Sequence[Tap]]) -> list[tuple[dict[Tap, Tensor], Tensor]]:
    """Wraps the model's `embed_multimodal`; the list gets readings and rows of every image that it encodes."""
    encode, found = model.embed_multimodal, []

    def spy(**inputs: Any) -> Any:
        shown = {name: values for name, values in inputs.items() if name != PLAN}
        count = len(inputs.get("image_grid_thw", inputs["pixel_values"]))
        with tap.armed([wanted(len(found) + i) for i in range(count)], shown) as readings:
            rows = encode(**inputs)
        found.extend(zip(readings, rows, strict=True))
        return rows

    model.embed_multimodal = spy
    return found


@pytest.mark.parametrize("family", scenarios.FAMILIES)
def test_readings_equal_transformers(family: str) -> None:
    path = str(tiny_vision.ensure(family))
    with engine(path, **scenarios.flags()) as running:
        model, config = running.runner.model, running.runner.vllm_config
        assert unreadable(model, config) is None
        seen, tap = tower(model, config), AttnTap.of(model, config)
        assert seen is not None and tap is not None and seen == tower_of(config.model_config.hf_config)
        readable = seen.whole or tuple(range(seen.layers))
        taps = [Tap(layer, kind, THRESHOLD) for layer in readable for kind in READINGS]
        found = watched(model, tap, lambda index: taps[index % 2 :])
        tokenizer = running.llm.get_tokenizer()
        running.run([ask(tokenizer, family, scene, tokens=1) for scene in ASKED])
        assert not any(layer._forward_pre_hooks for layer in attention_layers(visual_of(model)))
    images, tiled = [image for scene in ASKED for image in scene.images], family in TILED
    assert len(found) == len(images)
    for index, (image, (readings, rows)) in enumerate(zip(images, found, strict=True)):
        wanted = taps[index % 2 :]
        assert list(readings) and set(readings) == set(wanted)
        for tap_, truth in expected(path, family, image, wanted, seen).items():
            values = readings[tap_]
            if tiled:  # images of a request are padded to as many tiles
                assert values.ndim == truth.ndim and len(values) >= len(truth)
                values = values[: len(truth)]
            assert values.dtype == torch.float32 and values.shape == truth.shape, tap_
            assert tiled or len(values) == len(rows)
            gap = float((values - truth).abs().max() / truth.abs().max())
            print(family, tap_, f"{gap:.1e}")
            assert gap < 2e-5, tap_
            assert float(truth.std()) > 1e-3 * float(truth.abs().max()), "nothing to tell apart"


def _read_on_a_rank(worker: Any, wanted: list[Tap]) -> list[tuple[dict[Tap, Tensor], int]]:
    """The spy in a rank's process; called a second time it gives what was found."""
    model = worker.model_runner.model
    if not hasattr(model, "_found"):
        tap = AttnTap.of(model, worker.model_runner.vllm_config)
        assert tap is not None
        model._found = watched(model, tap, lambda index: wanted)
        return []
    return [(readings, len(rows)) for readings, rows in model._found]


@pytest.mark.two_cores
@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_heads_on_two_ranks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    path = str(tiny_vision.ensure(family))
    taps = [Tap(1, kind, THRESHOLD) for kind in READINGS]
    with scenarios.two_ranks(path) as running:
        running.llm.collective_rpc(_read_on_a_rank, args=(taps,))
        tokenizer = running.llm.get_tokenizer()
        running.run([ask(tokenizer, family, ASKED[0], tokens=1)])
        first, second = running.llm.collective_rpc(_read_on_a_rank, args=(taps,))
    truths = [expected(path, family, image, taps, Tower(4, cls=family == "llava")) for image in ASKED[0].images]
    assert len(first) == len(second) == 2
    for truth, (mine, _), (others, _) in zip(truths, first, second, strict=True):
        for tap in taps:
            assert torch.equal(mine[tap], others[tap]), tap
            assert float((mine[tap] - truth[tap]).abs().max() / truth[tap].abs().max()) < 2e-5, tap


def test_encoders_that_cannot_be_read() -> None:
    path = str(tiny_vision.ensure("llava"))
    with engine(path, **scenarios.flags()) as running:
        model, config = running.runner.model, running.runner.vllm_config
        config.model_config.multimodal_config.mm_encoder_tp_mode = "data"
        assert "--mm-encoder-tp-mode data" in str(unreadable(model, config)) and AttnTap.of(model, config) is None
        config.model_config.multimodal_config.mm_encoder_tp_mode = "weights"
        config.model_config.hf_config.vision_feature_select_strategy = "full"
        assert "vision_feature_select_strategy" in str(unreadable(model, config))
        assert "no vision tower" in str(unreadable(torch.nn.Linear(1, 1), config))
