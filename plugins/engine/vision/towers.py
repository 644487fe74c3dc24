"""Where a model of vLLM's has its vision tower, and whether the attention of it can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from thriftree.plugins.vision.image import Tower


def visual_of(model: Any) -> Any:
    """The vision tower; None: the model has none where we look."""
    return getattr(model, "visual", None) or getattr(model, "vision_tower", None)


def attention_layers(visual: nn.Module) -> list[nn.Module]:
    """The attention of each layer, in order."""
    from vllm.model_executor.layers.attention import MMEncoderAttention

    return [module for module in visual.modules() if isinstance(module, MMEncoderAttention)]


def windows_of(visual: Any) -> Callable[[int, int, int], Tensor] | None:
    """In which order a tower with windows sees the rows of a grid of patches: ``order[i]`` is the row at place `i`."""
    index = getattr(visual, "get_window_index_thw", None)
    return None if index is None else lambda frames, height, width: index(frames, height, width)[0]


def tower(model: Any, vllm_config: Any) -> Tower | None:
    """The tower as methods see it; None: its attention cannot be read (`unreadable` says why)."""
    if unreadable(model, vllm_config) is not None:
        return None
    visual, config = visual_of(model), vllm_config.model_config.hf_config.vision_config
    layers = len(attention_layers(visual))
    depth = getattr(config, "depth", None) or config.num_hidden_layers
    whole = tuple(getattr(visual, "fullatt_block_indexes", None) or ())
    return Tower(layers=layers, depth=depth, whole=whole, cls=_has_cls(config))


def unreadable(model: Any, vllm_config: Any) -> str | None:
    """Why the attention of a model's vision tower cannot be read; None: it can."""
    visual = visual_of(model)
    config = getattr(vllm_config.model_config.hf_config, "vision_config", None)
    if visual is None or config is None or not attention_layers(visual):
        return "the model has no vision tower with attention of vLLM's own"
    if vllm_config.compilation_config.compile_mm_encoder:
        return "--compilation-config compile_mm_encoder: a compiled encoder cannot be read"
    if vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data":  # on one rank it sorts them, too
        return "--mm-encoder-tp-mode data: images are dealt out to ranks, and no rank sees the attention of all"
    if hasattr(model, "vision_tower") and _has_cls(config) != _drops_first(vllm_config):
        return "vision_feature_select_strategy: the rows of an image are not the tower's patches"
    return None


def _has_cls(vision_config: Any) -> bool:
    return bool(vision_config.model_type == "clip_vision_model")


def _drops_first(vllm_config: Any) -> bool:
    return getattr(vllm_config.model_config.hf_config, "vision_feature_select_strategy", "default") == "default"
