"""The hooks on a language model's layers: rows leave before the first late one, and come back empty after the last.

With `runner` the only code of this package that names vLLM's internals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from thriftree.plugins.engine.vision.late.step import LateRows, Waiting


@dataclass
class LateStep:
    """A step as the layers need it."""

    rows: LateRows
    metadata: Any  # of attention, for the late layers' rows
    slots: Tensor  # [M] int64
    at: Tensor = field(default_factory=lambda: torch.empty(0))  # [M] the rows, as the layers index by them
    positions: Tensor | None = None  # [M] or [3, M]
    size: int = 0  # rows of the step


class LateLayers:
    """Of one language model. Outside of `running` its hooks do nothing."""

    def __init__(self, language_model: Any, first: int, ranks: int = 1) -> None:
        """Layers `first` and later are late; `ranks` share the heads.

        Raises:
            ValueError: the model is built in another way than these hooks know.
        """
        decoder = getattr(language_model, "model", None)
        layers: Sequence[nn.Module] = getattr(decoder, "layers", ())
        norm = getattr(decoder, "norm", None)
        if not 1 <= first < len(layers) or not isinstance(norm, nn.Module):
            raise ValueError(f"--vision-late-layer {first}: no such layer in {type(language_model).__name__}")
        self._step: LateStep | None = None
        self._ranks = ranks
        self.names = [_attention(layer, first).layer_name for layer in layers[first:]]
        _attention(layers[first - 1], first).register_forward_pre_hook(self._read)
        layers[first].register_forward_pre_hook(self._enter)
        for layer in layers[first + 1 :]:
            layer.register_forward_pre_hook(self._go_on)
        norm.register_forward_hook(self._leave)

    @contextmanager
    def running(self, step: LateStep | None) -> Iterator[None]:
        """The model's next forward pass is this step; None: stock."""
        self._step = step
        try:
            yield
        finally:
            self._step = None

    def _read(self, module: Any, args: tuple[Any, ...]) -> None:
        """Before the attention of the last early layer: its queries and keys decide for those who wait for scores."""
        if self._step is None:
            return
        for one in self._step.rows.waiting:
            scores = last_attention(module, args[0], args[1], one)
            if self._ranks > 1:
                from vllm.distributed import tensor_model_parallel_all_reduce
                from vllm.distributed.parallel_state import get_tp_group

                # Rounding may differ from rank to rank, and rows that differ are wrong rows: the first rank decides.
                scores = get_tp_group().broadcast(tensor_model_parallel_all_reduce(scores).contiguous())
            one.fate.choose(scores.cpu())
            self._step.rows.settle(one)

    def _enter(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        step = self._step
        if step is None:
            return None
        positions, hidden, residual = args[:3]
        step.at = torch.from_numpy(step.rows.rows).to(hidden.device)
        step.size, step.positions = len(hidden), positions[..., step.at]
        context = get_forward_context()
        for name in self.names:
            context.attn_metadata[name] = step.metadata
            context.slot_mapping[name] = step.slots
        return (step.positions, hidden[step.at], residual[step.at], *args[3:])

    def _go_on(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self._step is None else (self._step.positions, *args[1:])

    def _leave(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        step = self._step
        if step is None:
            return None
        hidden, residual = output
        whole = hidden.new_zeros(step.size, *hidden.shape[1:])
        whole[step.at] = hidden
        return whole, residual


def last_attention(module: Any, query: Tensor, key: Tensor, one: Waiting) -> Tensor:
    """``[visual]`` float32: what a prompt's last token attends to, summed over this rank's heads.

    Args:
        module: vLLM's attention: `num_heads`, `num_kv_heads` and the implementation's `scale`.
        query: ``[rows, heads * head size]`` of the step.
        key: ``[rows, KV heads * head size]``.
    """
    prompt = one.fate.prompt
    keys = key[one.first : one.first + prompt].unflatten(-1, (module.num_kv_heads, -1)).float()
    last = query[one.first + prompt - 1].view(module.num_kv_heads, module.num_heads // module.num_kv_heads, -1).float()
    shares = (torch.einsum("hgd,nhd->hgn", last, keys) * module.impl.scale).softmax(-1).sum((0, 1))
    return shares[torch.from_numpy(one.fate.visual).to(shares.device)]


def _attention(layer: nn.Module, first: int) -> Any:
    found = [module for module in layer.modules() if isinstance(module, Attention)]
    if len(found) != 1:
        name = type(layer).__name__
        raise ValueError(f"--vision-late-layer {first}: {name} has {len(found)} attention modules, not 1")
    return found[0]
