"""The trained model as a checkpoint folder, in the key names of LLaVA-1.5 that both vLLM and transformers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thriftree.zoo.shapes_vl.scenes import PATCH, SIDE

# transformers' own names today, and those that checkpoints of LLaVA-1.5 have; vLLM 0.32 reads only the latter.
_NAMES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def renamed(key: str) -> str:
    """The name of a weight in the checkpoint. Raises ValueError for one that has none."""
    for now, then in _NAMES.items():
        if key.startswith(now):
            return then + key.removeprefix(now)
    raise ValueError(f"no LLaVA-1.5 name for {key}")


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Weights in bfloat16 (half the size), computed with in float32; tokenizer, image processor, chat template."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor, GenerationConfig, LlavaProcessor

    weights = {renamed(key): value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for part in (config, config["vision_config"], config["text_config"]):
        part["dtype"] = "float32"
    config["architectures"] = ["LlavaForConditionalGeneration"]
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    images = CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(out)
    text = config["text_config"]
    marks = {f"{name}_token_id": text[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    GenerationConfig(do_sample=False, max_new_tokens=16, **marks).save_pretrained(out)
