"""Corrected positions on vLLM's V2 runner, whose graphs go past a model's own `forward`."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.model_states.default import DefaultModelState


class CorrectedModelState(DefaultModelState):
    """The runner's book of positions: what a step's rows carry is added before a graph or a model reads them."""

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """As vLLM's; called after the rows of the step are embedded, and before anything runs on them."""
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        self.model.correct(inputs["positions"])
        return inputs
