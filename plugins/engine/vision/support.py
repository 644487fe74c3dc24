"""What an engine's model allows of visual-token pruning, and how every process comes to know it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from thriftree.plugins.engine.surface import check_version
from thriftree.plugins.engine.vision.architectures import FAMILIES
from thriftree.plugins.engine.vision.failures import extend
from thriftree.plugins.engine.vision.late import support as late
from thriftree.plugins.engine.vision.options import VisionOptions
from thriftree.plugins.vision import request
from thriftree.plugins.vision.image import Tower
from thriftree.plugins.vision.registry import configure, names

#: Attribute of the model's config: vLLM hands processors nothing else of an engine's settings.
_SETTINGS = "thriftree_vision"
#: vLLM's rotary cache of M-RoPE models has so many times the positions that they were trained for.
POSITIONS_FACTOR = 4


@dataclass(frozen=True)
class Settings:
    """What the front end's processors go by."""

    terms: request.Terms = field(default_factory=request.Terms)
    always: bool = False  # images of requests that say nothing are pruned too
    tower: Tower | None = None
    room: int | None = None  # positions that M-RoPE has beyond the longest prompt and answer (None: no M-RoPE)

    @property
    def on(self) -> bool:
        return self.terms.reason is None

    def default(self) -> request.Resolved:
        """For images of a request that says nothing."""
        return request.checked({}, self.terms) if self.always and self.on else request.default(self.terms)


def settle(vllm_config: Any) -> None:
    """Write an engine's settings where its processors find them, in whatever process these run.

    Raises:
        ValueError: the operator's settings do not fit the engine; the message names the flag.
        WrongVersion: of vLLM.
    """
    model = vllm_config.model_config
    options = VisionOptions.of(vllm_config.additional_config or {})
    if model is None or options.pruning == "off" or _is_part(model):
        return
    check_version()
    terms, tower = terms_of(vllm_config), tower_of(model.hf_config)
    written = [asdict(terms), options.apply == "always", tower and asdict(tower), _room(model)]
    setattr(model.hf_config, _SETTINGS, written)
    if terms.reason is None:
        extend(vllm_config)


def settings_of(model_config: Any) -> Settings:
    """What `settle` wrote, or that nothing is pruned."""
    written = getattr(model_config.hf_config, _SETTINGS, None)
    if written is None:
        return Settings()
    terms, always, tower, room = written
    return Settings(request.Terms(**terms), always, None if tower is None else Tower(**_tupled(tower)), room)


def terms_of(vllm_config: Any, profile: str = "exact") -> request.Terms:
    """What requests may ask for on this engine; `profile`: of requests that name none.

    Raises:
        ValueError: the operator's settings do not fit the engine; the message names the flag.
    """
    options = VisionOptions.of(vllm_config.additional_config or {})
    if options.pruning == "off":
        return request.Terms()
    reason = next(_reasons(vllm_config), None)
    terms = replace(options.terms(reason, _missing(vllm_config) if reason is None else {}), profile=profile)
    if options.late_layer is None:
        return terms
    late.check(vllm_config, options.late_layer, reason)
    return replace(terms, late_layer=options.late_layer, step_tokens=late.step_tokens(vllm_config))


def tower_of(hf_config: Any) -> Tower | None:
    """The vision tower as methods see it; None: of another kind than those whose attention can be read."""
    vision = getattr(hf_config, "vision_config", None)
    if vision is None or _family(hf_config) is None:
        return None
    if hasattr(vision, "depth"):  # Qwen
        whole = tuple(getattr(vision, "fullatt_block_indexes", ()) or ())
        return Tower(layers=vision.depth, depth=vision.depth, whole=whole)
    depth, last = vision.num_hidden_layers, getattr(hf_config, "vision_feature_layer", -1)
    if not isinstance(last, int):
        last = max(last, key=lambda layer: layer if layer >= 0 else depth + 1 + layer)
    layers = last if last >= 0 else depth + 1 + last
    return Tower(layers=layers, depth=depth, cls=vision.model_type == "clip_vision_model")


def _room(model: Any) -> int | None:
    """Kept rows keep their positions, so a prompt of few tokens can have far positions; the rotary cache ends."""
    family = _family(model.hf_config)
    if family is None or not family.mrope:
        return None
    text = model.hf_config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    trained = rope.get("original_max_position_embeddings", text.max_position_embeddings)
    return max(0, POSITIONS_FACTOR * int(trained) - int(model.max_model_len))


def _tupled(tower: Mapping[str, Any]) -> dict[str, Any]:
    return {**tower, "whole": tuple(tower["whole"])}


def _family(hf_config: Any) -> Any:
    named = getattr(hf_config, "architectures", None) or ()
    return next((FAMILIES[name] for name in named if name in FAMILIES), None)


def _is_part(model: Any) -> bool:
    """vLLM builds a vision model's language model from a config of its own, with the same hooks."""
    return bool(model.is_submodel_config)


def _missing(config: Any) -> dict[str, str]:
    tower = tower_of(config.model_config.hf_config)
    split = config.model_config.multimodal_config.mm_encoder_tp_mode == "data"
    found = {}
    for name in names():
        method = configure(name)
        reads = tower is not None and bool(method.taps(tower))
        try:
            method.check(tower)
        except ValueError as error:
            found[name] = str(error).partition(": ")[2]
        if reads and split:
            found[name] = "--mm-encoder-tp-mode data: images come in another order, and no rank sees them all"
    return found


def _reasons(config: Any) -> Iterator[str]:
    model, parallel, compilation = config.model_config, config.parallel_config, config.compilation_config
    if model.multimodal_config is None:
        yield "the model takes no images"
        return
    family, hf = _family(model.hf_config), model.hf_config
    if family is None:
        named = ", ".join(getattr(hf, "architectures", None) or ("the model",))
        yield f"{named}: it is for {', '.join(FAMILIES)}"
        return
    if getattr(hf.vision_config, "model_type", "") == "pixtral":
        yield "the Pixtral vision tower puts row ends into the prompt"
    clip = getattr(hf.vision_config, "model_type", "") == "clip_vision_model"
    if clip and getattr(hf, "vision_feature_select_strategy", "default") == "full":
        yield "the model's images begin with the tower's CLS row (vision_feature_select_strategy full)"
    if model.multimodal_config.video_pruning_rate:
        yield "--video-pruning-rate: vLLM's own pruning of videos appends to images too"
    if compilation.cudagraph_mm_encoder:
        yield "--compilation-config cudagraph_mm_encoder: the encoder's graphs go past the selection"
    if compilation.compile_mm_encoder:
        yield "--compilation-config compile_mm_encoder: a compiled encoder cannot be read"
    if parallel.use_ubatching:
        yield "--enable-dbo or --ubatch-size: positions are cut before they are corrected"
    lora = config.lora_config
    if lora is not None and lora.enable_tower_connector_lora:
        yield "--enable-tower-connector-lora: vLLM counts the tower's tokens by the pruned images"
    if not family.mrope:
        return
    mode = compilation.cudagraph_mode
    if mode is not None and mode.has_full_cudagraphs() and not config.use_v2_model_runner:
        # Decoding graphs too: a prompt's last chunk can be one row of an image, which the V1 runner takes for decoding.
        yield f"--compilation-config cudagraph_mode {mode.name} on the V1 runner: graphs go past corrected positions"
    if parallel.pipeline_parallel_size > 1:
        yield f"--pipeline-parallel-size {parallel.pipeline_parallel_size}: later stages do not see the kept positions"
    speculative = config.speculative_config
    if speculative is not None and speculative.method != "custom_class":
        yield f"--speculative-config {speculative.method}: a draft model would get rows with positions on them"
