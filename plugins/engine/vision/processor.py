"""vLLM's image processors, taught to count first: the prompt gets a token for each row that will stay."""

from __future__ import annotations

import hashlib
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import PromptUpdateDetails

from thriftree.plugins.engine.vision.plan import PLAN, Plan, configured
from thriftree.plugins.engine.vision.question import questions, says_something, special_ids
from thriftree.plugins.engine.vision.support import Settings, settings_of
from thriftree.plugins.engine.vision.wish import WISH, Pruned, Wish
from thriftree.plugins.refused import Refused
from thriftree.plugins.vision import request
from thriftree.plugins.vision.base import kept

if TYPE_CHECKING:
    from vllm.multimodal.processing.processor import BaseMultiModalProcessor as Base
else:
    Base = object

#: Pixels of an image that go into its seed.
_SAMPLED = 1 << 16


@dataclass
class _Call:
    """One request in the processor."""

    vision: request.Resolved  # "off" where all rows of all images stay
    given: bool  # the request said so itself
    ours: bool  # by way of the gateway
    wish: Wish
    questions: list[tuple[int, ...]] | None = None  # of each image, for methods that read them
    missing: list[int] | None = None  # images that are not in the processor's cache; None: it has none

    @property
    def spec(self) -> str:
        return "" if self.vision == "off" else request.canonical(self.vision)

    def question(self, index: int) -> tuple[int, ...]:
        """Of the `index`-th image that is being processed."""
        if self.questions is None:
            return ()
        return self.questions[index if self.missing is None else self.missing[index]]


_CALL: ContextVar[_Call | None] = ContextVar("thriftree_vision_call", default=None)


@dataclass
class CountedContent(PromptUpdateDetails):
    """A prompt update that remembers its image's counts: it comes back from vLLM's cache with the image."""

    pruned: Pruned = field(default_factory=lambda: Pruned(0, 0, None))
    stretch: int = 0  # positions that the image takes beyond its tokens


def pruning(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A processor factory of vLLM's (a class, or a function that picks one) whose processors prune."""

    def build(*args: Any, **kwargs: Any) -> Any:
        made = factory(*args, **kwargs)
        name = f"Pruning{type(made).__name__}"
        adopted: Any = types.new_class(name, (PruningProcessorMixin, type(made)))
        processor = adopted.__new__(adopted)
        processor.__dict__.update(made.__dict__)
        return processor

    return build


class PruningProcessorMixin(Base):
    """Before a processor of vLLM's."""

    takes_wishes = True

    def apply(self, inputs: ProcessorInputs, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, for `WISH` among the processor's arguments.

        Raises:
            VLLMValidationError: what was asked cannot be; it names the field.
        """
        given = dict(inputs.hf_processor_mm_kwargs)
        call = self._call(given.pop(WISH, None))
        if call.vision != "off" and configured(call.spec).needs_text and not call.wish.sizes_only:
            call.questions = self._questions(inputs, call.ours)
        token = _CALL.set(call)
        try:
            return super().apply(replace(inputs, hf_processor_mm_kwargs=given), *args, **kwargs)
        finally:
            _CALL.reset(token)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """The largest images that requests may have: budgets and the encoder's cache are sized by them."""
        terms = self._settings.terms
        most: request.Resolved = "off"
        if terms.reason is None and terms.max_keep < 1:
            most = {"method": "random", "keep": terms.max_keep}
        wish = Wish(most, sizes_only=True)
        return replace(super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs={WISH: wish})

    @property
    def _settings(self) -> Settings:
        if "_thrift_settings" not in self.__dict__:
            self.__dict__["_thrift_settings"] = settings_of(self.info.ctx.model_config)
        settings: Settings = self.__dict__["_thrift_settings"]
        return settings

    def _call(self, asked: Any) -> _Call:
        settings, ours = self._settings, isinstance(asked, Wish)
        wish = asked if isinstance(asked, Wish) else Wish("off")
        try:
            vision: request.Resolved
            if wish.sizes_only:
                vision = wish.vision
            elif asked is None:
                vision = settings.default()
            else:
                vision = request.checked(wish.vision if ours else asked, settings.terms)
            if not ours and isinstance(vision, dict) and "late" in vision:
                raise ValueError("late: it is said in vllm_xargs, as thriftree.late")
            vision = _unless_whole(request.first_stage(vision))
            if vision != "off":
                configured(request.canonical(vision)).check(settings.tower)
        except Refused as error:
            raise _refusal(error.field.removeprefix("vision").lstrip("."), error.why, ours) from None
        except ValueError as error:
            name, _, why = str(error).partition(": ")
            raise _refusal(name, why, ours) from None
        return _Call(vision, asked is not None and not wish.sizes_only, ours, wish)

    def _questions(self, inputs: ProcessorInputs, ours: bool) -> list[tuple[int, ...]]:
        config, tokenizer = self.info.ctx.model_config.hf_config, self.info.ctx.tokenizer
        image = next(getattr(config, n) for n in ("image_token_id", "image_token_index") if hasattr(config, n))
        frame = [getattr(config, n, -1) for n in ("vision_start_token_id", "vision_end_token_id")]
        if "_thrift_special" not in self.__dict__:
            self.__dict__["_thrift_special"] = special_ids(tokenizer)
        found = questions(inputs.prompt, image, self.__dict__["_thrift_special"], frame)
        images = inputs.mm_data_items.get_all_counts().get("image", 0)
        if len(found) != images or not all(says_something(tokenizer.decode(one)) for one in found):
            raise _refusal("method", "it goes by the question, and the prompt has no text with the image", ours)
        return found

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        """An image's identity is the picture and what is done to it; left whole, it is the picture alone."""
        hashes = super()._get_mm_hashes(inputs)
        call = _CALL.get()
        if call is None or call.vision == "off" or "image" not in hashes:
            return hashes
        asked = call.questions or [()] * len(hashes["image"])
        return {**hashes, "image": [_identity(h, call.spec, q) for h, q in zip(hashes["image"], asked, strict=True)]}

    def _get_cache_missing_items(self, *args: Any, **kwargs: Any) -> Any:
        cached, missing = super()._get_cache_missing_items(*args, **kwargs)
        call = _CALL.get()
        if call is not None:
            call.missing = [index for index, here in enumerate(cached.get("image", ())) if not here]
        return cached, missing

    def _get_mm_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        updates = super()._get_mm_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        call = _CALL.get()
        if call is None or not self._settings.on or "image" not in updates:
            return updates
        images = []
        items = out_mm_kwargs.get("image", [])  # nothing where all come from the cache
        for index, (item, alternatives) in enumerate(zip(items, updates["image"], strict=True)):
            plan = self._plan(call, index, item, alternatives[0].content)
            item[PLAN] = plan.elem()
            method, stretch = _method(call), _stretch(item, plan, self.info.ctx.model_config)
            images.append([replace(one, content=shrunk(one.content, plan, method, stretch)) for one in alternatives])
        return {**updates, "image": images}

    def _plan(self, call: _Call, index: int, item: Mapping[str, Any], content: PromptUpdateDetails) -> Plan:
        rows = int(_is_embed(content).sum())
        most = kept(rows, self._settings.terms.max_keep, None)
        if "pixel_values" not in item and (call.vision != "off" or most < rows):  # the tower never sees it
            if call.given or most < rows:
                raise _refusal("", "images given as embeddings are not pruned", call.ours)
            return Plan(rows, rows)
        if call.vision == "off":
            return Plan(rows, rows)
        asked: Any = call.vision
        if asked.get("keep_tokens", 0) > rows:
            raise _refusal("keep_tokens", f"{asked['keep_tokens']} is more than the {rows} of an image", call.ours)
        keep = kept(rows, asked.get("keep"), asked.get("keep_tokens"))
        if keep > most:
            why = f"{keep} of this image's {rows} tokens is above this server's cap of {most} (--vision-max-keep)"
            raise _refusal("keep_tokens", why, call.ours)
        if keep == rows:
            return Plan(rows, rows)
        return Plan(rows, keep, call.spec, _seed(item["pixel_values"].data, call.spec), call.question(index))

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        call = _CALL.get()
        if call is not None:
            contents = [one[0].content for one in mm_res.prompt_updates.get("image", ())]
            call.wish.images += [_counts(content) for content in contents]
            self._check_positions(call, sum(getattr(content, "stretch", 0) for content in contents))
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)

    def _check_positions(self, call: _Call, stretch: int) -> None:
        room = self._settings.room
        if room is not None and stretch > room:
            why = f"images keep their positions, {stretch} beyond their tokens; there is room for {room}: keep more"
            raise _refusal("keep_tokens" if "keep_tokens" in call.vision else "keep", why, call.ours)


def shrunk(content: PromptUpdateDetails, plan: Plan, method: str | None, stretch: int = 0) -> CountedContent:
    """The first `plan.keep` of an image's placeholder tokens; tokens around and between them all stay."""
    mask = _is_embed(content)
    stays = ~mask | (mask.cumsum(0) <= plan.keep)
    full = [token for token, stay in zip(content.full, stays.tolist(), strict=True) if stay]
    pruned = Pruned(plan.rows, plan.keep, method if plan.prunes else None)
    return CountedContent(full, content.is_embed, pruned, stretch)


def _stretch(item: Mapping[str, Any], plan: Plan, model_config: Any) -> int:
    if not plan.prunes or "image_grid_thw" not in item:
        return 0
    _, height, width = item["image_grid_thw"].data.tolist()
    return int(max(0, max(height, width) // model_config.hf_config.vision_config.spatial_merge_size - plan.keep))


def _counts(content: PromptUpdateDetails) -> Pruned:
    if isinstance(content, CountedContent):
        return content.pruned
    rows = int(_is_embed(content).sum())
    return Pruned(rows, rows, None)


def _is_embed(content: PromptUpdateDetails) -> Tensor:
    if content.is_embed is None:
        return torch.ones(len(content.full), dtype=torch.bool)
    return content.is_embed(content.full)


def _method(call: _Call) -> str | None:
    return None if isinstance(call.vision, str) else str(call.vision["method"])


def _unless_whole(vision: request.Resolved) -> request.Resolved:
    """Every method keeps all rows at a share of 1, so such images are the ones that nobody prunes."""
    return "off" if isinstance(vision, dict) and vision.get("keep") == 1 else vision


def _identity(stock: str, spec: str, question: Sequence[int]) -> str:
    return hashlib.sha256(f"{stock}\n{spec}\n{list(question)}".encode()).hexdigest()


def _seed(pixels: Any, spec: str) -> int:
    """From the picture and the settings, whatever identity the client gave the picture."""
    flat = pixels.detach().flatten() if isinstance(pixels, Tensor) else torch.cat([one.flatten() for one in pixels])
    sample = flat[:: max(1, len(flat) // _SAMPLED)].contiguous().view(torch.uint8).numpy()
    return zlib.crc32(spec.encode(), zlib.crc32(sample.tobytes()))


def _refusal(name: str, why: str, ours: bool) -> VLLMValidationError:
    field = ".".join(part for part in ("thrift.vision" if ours else f"mm_processor_kwargs.{WISH}", name) if part)
    return VLLMValidationError(f"{field}: {why}", parameter=field)
