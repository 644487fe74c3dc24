"""Models for the clock: shapes with random weights, since time does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thriftree.zoo import tiny, tiny_vision


@dataclass(frozen=True)
class Shape:
    """A model, and the picture that it is shown."""

    family: tiny_vision.Family
    side: int  # pixels of a square picture
    rows: int  # of it behind the projector
    weights: bool = True  # in the folder; without, vLLM makes some up when it loads
    cache_gib: float = 1.0  # of a GPU, for 64 requests

    @property
    def memory(self) -> dict[str, Any]:
        """Flags of an engine on a GPU that others may use too."""
        return {"kv_cache_memory_bytes": int(self.cache_gib * 2**30), "gpu_memory_utilization": 0.1}

    def request(self, draw: np.random.Generator, vision: Any) -> dict[str, Any]:
        """About a picture that nobody has seen before."""
        pixels = draw.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return {
            "prompt": f"{self.family.image}What is it?",
            "multi_modal_data": {"image": Image.fromarray(pixels)},
            "mm_processor_kwargs": {"thrift_vision": vision},
        }


def _llava(summary: str, vision: dict[str, Any], text: dict[str, Any]) -> tiny_vision.Family:
    side = 336  # pixels: 24 x 24 patches
    tower = {"model_type": "clip_vision_model", "image_size": side, "patch_size": 14, **vision}
    crop = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return replace(
        tiny_vision.FAMILIES["llava"],
        summary=summary,
        vision=tower,
        text={"model_type": "llama", "rms_norm_eps": 1e-5, **text},
        config={**tiny_vision.FAMILIES["llava"].config, "image_seq_length": 576},
        pixels=("CLIPImageProcessor", crop),
    )


def _qwen(summary: str, vision: dict[str, Any], text: dict[str, Any], rows: int) -> tiny_vision.Family:
    tiny_one = tiny_vision.FAMILIES["qwen2.5-vl"]
    kind, pixels = tiny_one.pixels
    pixels = {**pixels, "size": {"shortest_edge": 4 * 28 * 28, "longest_edge": rows * 28 * 28}}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    assert tiny_one.video is not None
    return replace(
        tiny_one,
        summary=summary,
        vision={**tiny_one.vision, **vision},
        text={"rope_parameters": rope, "rms_norm_eps": 1e-6, **text},
        pixels=(kind, pixels),
        video=(tiny_one.video[0], pixels),
    )


def _layers(count: int, hidden: int, inner: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": count,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


def _tower(count: int, hidden: int, inner: int, heads: int) -> dict[str, Any]:
    shape = _layers(count, hidden, inner, heads, heads)
    del shape["num_key_value_heads"]
    return shape


SHAPES = {
    "small": Shape(  # the note's set-up, in which the language model dominates on a CPU
        _llava(
            "CLIP of 12 layers of 384, 24 x 24 rows an image; Llama of 16 layers of 512",
            _tower(12, 384, 1536, 6),
            _layers(16, 512, 1536, 8, 8),
        ),
        336,
        576,
    ),
    "llava-1.5-7b": Shape(
        _llava(
            "LLaVA-1.5-7B's shape: CLIP ViT-L/14 at 336, 24 x 24 rows an image; Llama of 32 layers of 4096",
            _tower(24, 1024, 4096, 16),
            _layers(32, 4096, 11008, 32, 32, vocab_size=32064),
        ),
        336,
        576,
        weights=False,
        cache_gib=21,
    ),
    "qwen2.5-vl-7b": Shape(
        _qwen(
            "Qwen2.5-VL-7B's shape: its tower of 32 layers of 1280, 36 x 36 rows of a picture of 1008 x 1008; "
            "28 layers of 3584",
            {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            _layers(28, 3584, 18944, 28, 4, vocab_size=152064),
            rows=36 * 36,
        ),
        1008,
        36 * 36,
        weights=False,
        cache_gib=6,
    ),
}


def ensure(name: str) -> Path:
    """The folder of a shape, built in the cache if it is not there."""
    shape = SHAPES[name]
    build: Callable[[tiny_vision.Family, Path], None] = tiny_vision.build if shape.weights else _without_weights
    return tiny.built(f"bench-vision-{name}", "1", lambda out: build(shape.family, out))


def _without_weights(family: tiny_vision.Family, out: Path) -> None:
    tiny_vision.config(family).save_pretrained(out)
    tiny_vision.processor(family).save_pretrained(out)
