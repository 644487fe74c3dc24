"""How a request's images learn what the gateway resolved for them, and how the counts come back.

vLLM's handlers render a prompt in the request's own task, then hand its images to a thread. `carrying` stands between
the two: the task's contract goes along as an argument that no client can send, whatever the body says.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm.exceptions import VLLMValidationError

from thriftree.plugins.engine.contract_var import CURRENT
from thriftree.plugins.refused import Refused
from thriftree.plugins.vision.request import Resolved, Terms, check_late

#: Key of our part among the processor's arguments (in a stock server: of the request's ``mm_processor_kwargs``).
WISH = "thrift_vision"


@dataclass(frozen=True)
class Pruned:
    """What becomes of one image: rows that the tower gives, and rows that the language model gets."""

    rows: int
    keep: int
    method: str | None  # None: all rows stay


@dataclass
class Wish:
    """Resolved settings of a request, and its images' counts once they are processed."""

    vision: Resolved
    images: list[Pruned] = field(default_factory=list)
    sizes_only: bool = False  # a dummy, to see how large an image can get


def carry(renderer: Any, terms: Terms | None = None) -> None:
    """Make a renderer of vLLM's hand `contract_var.CURRENT` to its image processor, and hold requests to their caps.

    `terms`: what the engine grants, for what is known only with the prompt.
    """
    prunes = getattr(renderer.mm_processor, "takes_wishes", False)
    cache = getattr(renderer, "mm_processor_cache", None)
    renderer._process_multimodal_async = carrying(renderer._process_multimodal_async, prunes, terms, cache)


def carrying(
    process: Callable[..., Awaitable[Any]], prunes: bool = True, terms: Terms | None = None, cache: Any = None
) -> Callable[..., Awaitable[Any]]:
    """`process` with the wish of the request that this task serves, where the processor `prunes`.

    `cache`: the processor's. It takes the engine to have all that it has seen, so what is refused here leaves it, and
    what is refused between here and the engine leaves it when the contract is closed.

    Raises:
        VLLMValidationError: of what is returned, for more visual tokens than the request's key may use, or a prompt
            that the late layers cannot be told from.
    """

    @functools.wraps(process)
    async def _process_multimodal_async(*args: Any, mm_processor_kwargs: Any = None, **kwargs: Any) -> Any:
        contract = CURRENT.get()
        if contract is None:
            return await process(*args, mm_processor_kwargs=mm_processor_kwargs, **kwargs)
        if "vision" not in contract.thrift:
            result = await process(*args, mm_processor_kwargs=mm_processor_kwargs, **kwargs)
            contract.unsent.append(functools.partial(forget, cache, _hashes(result)))
            return result
        wish = Wish(contract.thrift["vision"])
        given = {**(mm_processor_kwargs or {}), WISH: wish} if prunes else mm_processor_kwargs
        result = await process(*args, mm_processor_kwargs=given, **kwargs)
        try:
            _hold(result, contract.max_visual_tokens)
            _check_late(wish.vision, result, terms or Terms())
        except VLLMValidationError:
            forget(cache, _hashes(result))
            raise
        contract.unsent.append(functools.partial(forget, cache, _hashes(result)))
        images = wish.images if prunes else [Pruned(n, n, None) for n in _lengths(result, "image")]
        for image in images:
            contract.report.count_vision(image.method, image.rows, image.keep)
        return result

    return _process_multimodal_async


def forget(cache: Any, hashes: Iterable[str]) -> None:
    """Take images out of a processor's cache that the engine will not get: without that the next request is refused."""
    for name in hashes:
        if cache is not None:
            cache.invalidate(name)


def _hashes(result: Any) -> list[str]:
    return [name for names in result["mm_hashes"].values() for name in names]


def _check_late(vision: Resolved, result: Any, terms: Terms) -> None:
    if not isinstance(vision, dict) or "late" not in vision:
        return
    try:
        check_late(vision["late"], len(result["prompt_token_ids"]), terms)
    except Refused as error:
        field = f"thrift.{error.field}"
        raise VLLMValidationError(f"{field}: {error.why}", parameter=field) from None


def _lengths(result: Any, modality: str) -> list[int]:
    """Tokens of each image or video that the language model will get."""
    return [int(place.get_num_embeds()) for place in result["mm_placeholders"].get(modality, ())]


def _hold(result: Any, most: int | None) -> None:
    asked = sum(sum(_lengths(result, modality)) for modality in ("image", "video"))
    if most is not None and asked > most:
        why = f"{asked} visual tokens are above this key's cap of {most} (max_visual_tokens); keep fewer of each image"
        raise VLLMValidationError(f"thrift.vision: {why}", parameter="thrift.vision")
