"""vLLM's vision-language models with pruned images: a mixin before the model's class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from thriftree.plugins.engine.seam import replaced
from thriftree.plugins.engine.vision.architectures import Family
from thriftree.plugins.engine.vision.plan import PLAN, plan_of, read_all
from thriftree.plugins.engine.vision.positions import pruned_positions, strip
from thriftree.plugins.engine.vision.selection import Selector
from thriftree.plugins.engine.vision.support import POSITIONS_FACTOR, settings_of

if TYPE_CHECKING:
    Base = Any
else:
    Base = object


@contextmanager
def far_positions(family: Family, prunes: bool) -> Iterator[None]:
    """Qwen3-VL's rotary cache ends with the longest prompt, unless vLLM's own pruning is on; with ours it may not."""
    module = import_module(f"vllm.model_executor.models.{family.module}")
    if not prunes or not hasattr(module, "mrope_positions_factor"):
        yield
        return
    with replaced(module, "mrope_positions_factor", lambda vllm_config: POSITIONS_FACTOR):
        yield


class PruningMixin(Base):
    """Rows are picked between the vision tower and vLLM's encoder cache, which then holds what stays."""

    thrift_family: Family

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._selector = Selector(self, vllm_config)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """As vLLM's; images that come with plans give the rows that these keep."""
        plans = kwargs.pop(PLAN, None)
        if plans is None:
            return super().embed_multimodal(**kwargs)
        return self._selector.embed(read_all(plans), kwargs, super().embed_multimodal)


class MRoPEPruningMixin(PruningMixin):
    """Kept rows stay at their places in the image: the positions of a step are corrected before the forward pass."""

    _moved: tuple[Tensor, Tensor] | None = None  # of this step's rows: places [r], offsets [2, r]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        with far_positions(self.thrift_family, settings_of(vllm_config.model_config).on):
            super().__init__(vllm_config=vllm_config, prefix=prefix)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """``[3, tokens]``; the kept rows of a pruned image stand at its first position."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        plans = [plan_of(feature.data) if feature.modality == "image" else None for feature in features]
        counts = [(plan.rows, plan.keep) if plan is not None and plan.prunes else None for plan in plans]
        stock = super().get_mrope_input_positions
        if not any(counts):
            positions: tuple[Tensor, int] = stock(input_tokens, mm_features)
            return positions
        return pruned_positions(list(input_tokens), features, counts, stock)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """As vLLM's; positions that ride on rows are taken off and kept for the forward pass."""
        self._moved = None
        if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
            multimodal_embeddings, self._moved = strip(multimodal_embeddings, self._selector.full_width, is_multimodal)
        embedded: Tensor = super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        return embedded

    def correct(self, positions: Tensor) -> None:
        """Move a step's rows to where they stood, in the runner's ``[3, tokens]`` buffer: graphs read from there."""
        if self._moved is not None:
            places, offsets = self._moved
            positions[1:].index_add_(1, places, offsets.to(positions.dtype))
            self._moved = None

    def get_model_state_cls(self) -> type:
        """For the V2 runner: it corrects positions itself, since its full graphs are run without `forward`."""
        from thriftree.plugins.engine.vision.model_state import CorrectedModelState

        return CorrectedModelState

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, on corrected positions (on the V2 runner they are correct already)."""
        self.correct(positions)
        return super().forward(input_ids, positions, *args, **kwargs)
