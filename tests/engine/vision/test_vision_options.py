"""What an operator may set, and what an engine says it cannot do. Without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import CUDAGraphMode

from thriftree.plugins.engine.vision.options import VisionOptions
from thriftree.plugins.engine.vision.support import settings_of, settle, terms_of, tower_of
from thriftree.plugins.vision.image import Tower
from thriftree.plugins.vision.request import NOT_HERE


def config(architecture: str = "Qwen2_5_VLForConditionalGeneration", vision: Any = None, **given: Any) -> Any:
    """An engine's config as far as we read it; ``given["compilation.cudagraph_mode"]`` and the like change it."""
    tower: dict[str, Any] = {"model_type": "qwen2_5_vl", "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}
    if architecture.startswith("Llava"):
        tower = {"model_type": "clip_vision_model", "num_hidden_layers": 24}
    parts: dict[str, dict[str, Any]] = {
        "compilation": {
            "cudagraph_mm_encoder": False,
            "compile_mm_encoder": False,
            "cudagraph_mode": CUDAGraphMode.NONE,
        },
        "parallel": {
            "use_ubatching": False,
            "pipeline_parallel_size": 1,
            "tensor_parallel_size": 1,
            "worker_extension_cls": "",
        },
        "multimodal": {"mm_encoder_tp_mode": "weights", "video_pruning_rate": None},
        "hf": {"architectures": [architecture], "vision_config": SimpleNamespace(**tower), "vision_feature_layer": -2},
        "top": {"lora_config": None, "speculative_config": None, "use_v2_model_runner": False},
    }
    for name, value in given.items():
        part, _, key = name.partition(".")
        parts[part][key] = value
    whole = {name: SimpleNamespace(**values) for name, values in parts.items()}
    text = SimpleNamespace(max_position_embeddings=1000, rope_parameters={})
    whole["hf"].get_text_config = lambda: text
    model = SimpleNamespace(
        hf_config=whole["hf"], multimodal_config=whole["multimodal"], is_submodel_config=False, max_model_len=600
    )
    return SimpleNamespace(
        model_config=model,
        compilation_config=whole["compilation"],
        parallel_config=whole["parallel"],
        additional_config={"thriftree": {"vision": {} if vision is None else vision}},
        **parts["top"],
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prune": True}, r"thriftree\.vision has no setting prune"),
        ([], r"thriftree\.vision must be an object"),
        ({"pruning": "maybe"}, r"thriftree\.vision\.pruning must be auto, on or off, not 'maybe'"),
        ({"method": "best"}, r"thriftree\.vision\.method must be one of .*divprune"),
        ({"keep": 0}, r"thriftree\.vision\.keep must be above 0 and at most 1, not 0"),
        ({"keep": True}, r"thriftree\.vision\.keep"),
        ({"max_keep": 1.1}, r"thriftree\.vision\.max_keep"),
        ({"apply": "yes"}, r"thriftree\.vision\.apply must be asked or always"),
    ],
)
def test_mistakes_are_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionOptions.of({"thriftree": {"vision": given}})


def test_off_without_our_options() -> None:
    assert VisionOptions.of({}).pruning == "off"
    plain = config()
    plain.additional_config = {}
    assert terms_of(plain).reason == NOT_HERE
    settle(plain)
    assert not settings_of(plain.model_config).on


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"compilation.cudagraph_mm_encoder": True}, "cudagraph_mm_encoder"),
        ({"compilation.compile_mm_encoder": True}, "compile_mm_encoder"),
        ({"compilation.cudagraph_mode": CUDAGraphMode.FULL}, "cudagraph_mode FULL"),
        ({"compilation.cudagraph_mode": CUDAGraphMode.FULL_AND_PIECEWISE}, "cudagraph_mode FULL_AND_PIECEWISE"),
        ({"parallel.pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"parallel.use_ubatching": True}, "--enable-dbo"),
        ({"multimodal.video_pruning_rate": 0.5}, "--video-pruning-rate"),
        ({"top.lora_config": SimpleNamespace(enable_tower_connector_lora=True)}, "--enable-tower-connector-lora"),
        ({"top.speculative_config": SimpleNamespace(method="eagle3")}, "--speculative-config eagle3"),
    ],
)
def test_flags_that_exclude_it_are_named(change: dict[str, Any], reason: str) -> None:
    """auto leaves images alone and says why; on does not start."""
    told = terms_of(config(**change)).reason
    assert (told is not None and told.startswith(reason)) or reason in str(told)
    with pytest.raises(ValueError, match="--vision-pruning on: "):
        terms_of(config(vision={"pruning": "on"}, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"compilation.cudagraph_mode": CUDAGraphMode.FULL},
        {"parallel.pipeline_parallel_size": 2},
        {"top.speculative_config": SimpleNamespace(method="eagle")},
    ],
)
def test_models_with_plain_positions_can_more(change: dict[str, Any]) -> None:
    assert terms_of(config("LlavaForConditionalGeneration", **change)).reason is None


def test_the_v2_runner_can_have_full_graphs() -> None:
    """It corrects positions before a graph runs; and the V1 runner can have piecewise ones."""
    for mode in (CUDAGraphMode.FULL, CUDAGraphMode.FULL_AND_PIECEWISE):
        assert terms_of(config(**{"compilation.cudagraph_mode": mode, "top.use_v2_model_runner": True})).reason is None
    assert terms_of(config(**{"compilation.cudagraph_mode": CUDAGraphMode.PIECEWISE})).reason is None


def test_trees_go_together_with_it() -> None:
    assert terms_of(config(**{"top.speculative_config": SimpleNamespace(method="custom_class")})).reason is None


def test_other_models() -> None:
    text = config()
    text.model_config.multimodal_config = None
    assert terms_of(text).reason == "the model takes no images"
    assert "it is for LlavaFor" in str(terms_of(config("MolmoForCausalLM")).reason)
    settle(config("MolmoForCausalLM", vision={"pruning": "auto"}))
    part = config("Qwen2ForCausalLM", vision={"pruning": "on"})
    part.model_config.is_submodel_config = True
    settle(part)  # a vision model's language model: nobody asks it


def test_a_split_encoder_cannot_be_read() -> None:
    missing = terms_of(config(**{"multimodal.mm_encoder_tp_mode": "data"})).missing
    assert "--mm-encoder-tp-mode data" in missing["hiprune"] and "divprune" not in missing
    with pytest.raises(ValueError, match="--vision-method hiprune: --mm-encoder-tp-mode data"):
        terms_of(config(vision={"method": "hiprune"}, **{"multimodal.mm_encoder_tp_mode": "data"}))


def test_settings_reach_processors() -> None:
    given = config(vision={"keep": 0.5, "max_keep": 0.25, "apply": "always"})
    settle(given)
    settings = settings_of(given.model_config)
    assert settings.on and settings.tower == Tower(layers=32, depth=32, whole=(7, 15, 23, 31))
    assert settings.default() == {"method": "divprune", "keep": 0.25}
    assert settings.terms.max_keep == 0.25 and settings.room == 3400
    given.model_config.hf_config.get_text_config().rope_parameters = {"original_max_position_embeddings": 100}
    settle(given)
    assert settings_of(given.model_config).room == 0
    plain = config("LlavaForConditionalGeneration")
    settle(plain)
    assert settings_of(plain.model_config).room is None


def test_towers() -> None:
    clip = config("LlavaForConditionalGeneration").model_config.hf_config
    assert tower_of(clip) == Tower(layers=23, depth=24, cls=True)
    clip.vision_feature_layer = [-2, -7]
    assert tower_of(clip) == Tower(layers=23, depth=24, cls=True)
