"""The architectures that images are pruned for. No vLLM in here: the entry point reads it in every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """A model class of vLLM's."""

    module: str  # below vllm.model_executor.models
    layout: Literal["square", "tiles", "grid"]  # of an image's rows
    mrope: bool = False  # rows have positions in three axes


FAMILIES = {
    "LlavaForConditionalGeneration": Family("llava", "square"),
    "LlavaNextForConditionalGeneration": Family("llava_next", "tiles"),
    "LlavaOnevisionForConditionalGeneration": Family("llava_onevision", "tiles"),
    "Qwen2VLForConditionalGeneration": Family("qwen2_vl", "grid", mrope=True),
    "Qwen2_5_VLForConditionalGeneration": Family("qwen2_5_vl", "grid", mrope=True),
    "Qwen3VLForConditionalGeneration": Family("qwen3_vl", "grid", mrope=True),
}
