"""The networks: a CLIP tower, a two-layer projector and a Llama decoder, as LLaVA has them; heads for the tower."""

from __future__ import annotations

from typing import Any

from thriftree.zoo.shapes_vl import words
from thriftree.zoo.shapes_vl.scenes import CHARACTERS, COLOURS, GRID, PATCH, SHAPES, SIDE

TOKENS = GRID * GRID
_VISION = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
_TEXT = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6}
WHAT = 1 + len(SHAPES) + len(CHARACTERS)  # what a patch shows: ground, a shape, a character
NAMES = len(COLOURS) * len(SHAPES) + len(CHARACTERS)  # what the whole scene holds


def build(vocabulary: int, seed: int = 0) -> Any:
    """An untrained `LlavaForConditionalGeneration`; the tower's positions start as a two-dimensional wave pattern."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, projection_dim=128, hidden_act="quick_gelu", **_VISION)
    text = LlamaConfig(
        vocab_size=vocabulary,
        num_key_value_heads=_TEXT["num_attention_heads"],
        max_position_embeddings=words.CONTEXT,
        bos_token_id=words.BEGIN,
        eos_token_id=words.END,
        pad_token_id=words.PAD,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        **_TEXT,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config).float()
    with torch.no_grad():
        table = model.model.vision_tower.embeddings.position_embedding.weight
        table[1:] = _waves(table.shape[1]) * 0.3
        for layer in model.model.language_model.layers:  # likes attract: a word finds the tokens that are near it
            layer.self_attn.q_proj.weight.mul_(2.5)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return model


def _waves(width: int) -> Any:
    """Sines and cosines of row and column, [TOKENS, width]."""
    import torch

    speeds = 3.0 ** -torch.linspace(0, 3, width // 4)
    angles = torch.arange(GRID)[:, None] * speeds
    line = torch.cat([angles.sin(), angles.cos()], -1)  # [GRID, width / 2]
    rows, columns = line[:, None].expand(GRID, GRID, -1), line[None].expand(GRID, GRID, -1)
    return torch.cat([rows, columns], -1).reshape(TOKENS, width)


def heads(width: int = _VISION["hidden_size"]) -> Any:
    """What teaches the tower, and the checkpoint leaves out: a label for each patch, the scene's names for CLS."""
    from torch import nn

    def head(out: int) -> Any:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out))

    sizes = {"what": WHAT, "colour": 1 + len(COLOURS), "order": 4, "middle": 1, "where": 2, "names": NAMES}
    return nn.ModuleDict({name: head(out) for name, out in sizes.items()})
