"""Tiny random vision-language models for engine tests: one of each family whose image tokens can be pruned.

Weights are scaled by their fan-in so that every part speaks: patches differ by what they show and by where they stand,
image rows are as long as those of text, and another image gives another answer. Same weights on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thriftree.zoo import cache, tiny

_RECIPE = "4"
_VOCAB = 512
_POSITIONS = 4096
_MARKS = ("<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_FIRST = 259  # id of the first of them: after the bytes and the ChatML marks
_TILES = [[112, 224], [224, 112], [224, 224], [112, 336], [336, 112]]
# vLLM sizes its memory by one picture for OneVision, 1153 x 944; with these, none has more rows than that one.
_SMALL_TILES = [[56 * down, 56 * right] for down in (1, 2, 3) for right in (1, 2, 3, 4)]
_QWEN_PIXELS = {"shortest_edge": 4 * 28 * 28, "longest_edge": 144 * 28 * 28}  # 4 to 144 rows an image
_TEMPLATE = (
    "{%% for m in messages %%}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{%% if m['content'] is string %%}{{ m['content'] }}{%% else %%}{%% for part in m['content'] %%}"
    "{%% if part['type'] == 'text' %%}{{ part['text'] }}{%% else %%}{{ '%s' }}{%% endif %%}"
    "{%% endfor %%}{%% endif %%}{{ '<|im_end|>' + '\n' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)


@dataclass(frozen=True)
class Family:
    """What makes a family: classes of transformers by name, and what its configs and processors are given."""

    stem: str  # of the config, model and processor classes
    summary: str
    vision: dict[str, Any]
    image: str = "<image>"  # how a prompt says "an image here"
    text: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    pixels: tuple[str, dict[str, Any]] = ("Qwen2VLImageProcessor", {})
    video: tuple[str, dict[str, Any]] | None = None
    processor: dict[str, Any] = field(default_factory=dict)


def _tower(kind: str, size: int, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4}
    return {"model_type": kind, "image_size": size, "patch_size": 14, **shape, **more}


def _square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def _llama(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", "rms_norm_eps": 1e-5, **more}


def _qwen(stem: str, summary: str, vision: dict[str, Any], patch: int, sections: list[int], **text: Any) -> Family:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    if stem == "Qwen3VL":  # transformers knows, vLLM is told
        rope["mrope_interleaved"] = True
    marks = {
        f"{name}_token_id": _FIRST + _MARKS.index(mark)
        for name, mark in (
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }
    pixels = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": _QWEN_PIXELS}
    films = "Qwen3VLVideoProcessor" if stem == "Qwen3VL" else "Qwen2VLVideoProcessor"
    return Family(
        stem,
        summary,
        {"depth": 4, "num_heads": 4, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
        image="<|vision_start|><|image_pad|><|vision_end|>",
        text={"rope_parameters": rope, **text},
        config=marks,
        pixels=("Qwen2VLImageProcessor", pixels),
        video=(films, pixels),
    )


FAMILIES = {
    "llava": Family(
        "Llava",
        "CLIP without its last layer, 12 x 12 rows an image",
        _tower("clip_vision_model", 168),
        text=_llama(),
        config={"image_token_index": _FIRST, "image_seq_length": 144},
        pixels=("CLIPImageProcessor", {"size": {"shortest_edge": 168}, "crop_size": _square(168)}),
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava-next": Family(
        "LlavaNext",
        "CLIP, a thumbnail of 8 x 8 rows and up to four tiles with separators",
        _tower("clip_vision_model", 112),
        text=_llama(),
        config={"image_token_index": _FIRST, "image_grid_pinpoints": _TILES, "image_seq_length": 64},
        pixels=(
            "LlavaNextImageProcessor",
            {"size": {"shortest_edge": 112}, "crop_size": _square(112), "image_grid_pinpoints": _TILES},
        ),
        processor={"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava-onevision": Family(
        "LlavaOnevision",
        "SigLIP (no CLS), a thumbnail of 4 x 4 rows and up to twelve tiles, scaled down to nine",
        _tower("siglip_vision_model", 56, vision_use_head=False),
        text={"model_type": "qwen2", "rms_norm_eps": 1e-5},
        config={
            "image_token_index": _FIRST,
            "video_token_index": _FIRST + 1,
            "image_grid_pinpoints": _SMALL_TILES,
            "vision_aspect_ratio": "anyres_max_9",
        },
        pixels=("LlavaOnevisionImageProcessor", {"size": _square(56), "image_grid_pinpoints": _SMALL_TILES}),
        video=("LlavaOnevisionVideoProcessor", {"size": _square(56)}),
        processor={
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    ),
    "qwen2-vl": _qwen(
        "Qwen2VL",
        "rotary positions of three axes, whole-image attention in every layer",
        {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2},
        14,
        [4, 6, 6],
    ),
    "qwen2.5-vl": _qwen(
        "Qwen2_5_VL",
        "windows of 4 x 4 rows in two of the tower's four layers",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
        },
        14,
        [4, 6, 6],
    ),
    "qwen3-vl": _qwen(
        "Qwen3VL",
        "deepstack: rows of two layers of the tower are added in the language model's first two",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "out_hidden_size": 128,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 2],
        },
        16,
        [6, 5, 5],
        head_dim=32,
    ),
}


def ensure(name: str) -> Path:
    """The folder of tiny vision model `name` (a key of `FAMILIES`), built in the cache if it is not there."""
    if name not in FAMILIES:
        raise cache.ZooError(f"no tiny vision model {name!r}; there are {', '.join(FAMILIES)}")
    return tiny.built(f"tiny-{name}", _RECIPE, lambda out: build(FAMILIES[name], out))


def build(family: Family, out: Path) -> None:
    """The checkpoint of a family, in an empty folder."""
    made = config(family)
    import transformers

    model = getattr(transformers, made.architectures[0])(made).float()
    _fill(model, sum(family.stem.encode()))
    model.save_pretrained(out)
    _old_names(out / "model.safetensors")
    processor(family).save_pretrained(out)


def config(family: Family) -> Any:
    """The config of a family's model."""
    from thriftree.zoo.cpu_wheels import repair

    repair()
    import transformers

    text = {
        "vocab_size": _VOCAB,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": _POSITIONS,
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 258,
        "pad_token_id": 256,
    }
    make = getattr(transformers, f"{family.stem}Config")
    made = make(vision_config=dict(family.vision), text_config={**text, **family.text}, **family.config)
    made.architectures = [f"{family.stem}ForConditionalGeneration"]
    return made


def _fill(model: Any, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(_scaled(key, noise))


def _scaled(key: str, noise: Any) -> Any:
    """`noise` of standard deviation 1 as the weight named `key`."""
    if key.endswith("bias"):
        return noise * 0.1
    if noise.ndim == 1 and ("norm" in key or "ln" in key.split(".")[-2]):
        return 1 + noise * 0.1
    if "embed_tokens" in key or "newline" in key or "position" in key or "pos_embed" in key or "class_emb" in key:
        return noise
    gain = 2.0 if "lm_head" in key else 0.7 if "projector" in key else 1.4
    return noise * (gain / noise[0].numel() ** 0.5)


def _old_names(file: Path) -> None:
    """CLIP's and SigLIP's weights under the names of published checkpoints, which vLLM expects."""
    from safetensors.torch import load_file, save_file

    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {key.replace(old, new) if new not in key else key: value for key, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def processor(family: Family) -> Any:
    """What turns a prompt and its pictures into the model's inputs."""
    from thriftree.zoo.cpu_wheels import repair

    repair()
    import transformers

    def make(kind: tuple[str, dict[str, Any]]) -> Any:
        build: Callable[..., Any] = getattr(transformers, kind[0])
        return build(**kind[1])

    template = _TEMPLATE % family.image
    parts = {"image_processor": make(family.pixels), "tokenizer": tiny.tokenizer(_MARKS, template)}
    if family.video is not None:
        parts["video_processor"] = make(family.video)
    build = getattr(transformers, f"{family.stem}Processor")
    return build(**parts, chat_template=template, **family.processor)
