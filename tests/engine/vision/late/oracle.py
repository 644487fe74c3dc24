"""What a request must answer whose visual tokens leave at a layer: transformers' own layers, run one by one.

No cache and no compaction: the whole sequence is computed anew for every token, in float32, with a causal mask over the
rows that are there. Rows keep their positions. Of ours it has the rows that controls choose; those of scores it checks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thriftree.plugins.vision.late import Late
from thriftree.plugins.vision.late_rows import chosen

from ..reference import Prompt, Reference, Reply

#: Of an attention share, between the engine and transformers.
ROUNDING = 1e-6


class Oracle:
    """Layers `first` and later of a reference's language model go without."""

    def __init__(self, reference: Reference, first: int) -> None:
        self.reference, self.first = reference, first
        self.language: Any = reference.model.model.language_model
        self.language.config._attn_implementation = "eager"  # it gives its weights
        self.scores: Tensor | None = None  # [rows] what the last row of the prompt attends to, of the last prompt
        self.told: list[tuple[list[int], list[int]]] = []  # visual positions, and those that went on by scores

    @torch.no_grad()
    def generate(self, prompt: Prompt, late: Late | None, tokens: int, seed: int = 0) -> Reply:
        """Greedy; `seed`: of `random`."""
        embeds, positions, out, steps = prompt.embeds, prompt.positions, list[int](), list[Tensor]()
        stay = torch.ones(len(prompt), dtype=torch.bool) if late is None else self._stay(prompt, late, seed)
        while len(out) < tokens:
            hidden = self._run(embeds, positions, prompt, stay)
            steps.append(self.reference.model.lm_head(hidden[-1]).float().log_softmax(-1))
            out.append(int(steps[-1].argmax()))
            new = self.reference.model.get_input_embeddings()(torch.tensor([out[-1]]))
            embeds = torch.cat((embeds, new))
            last = torch.full((positions.shape[0], 1), prompt.next + len(out) - 1)
            positions = torch.cat((positions, last), dim=1)
            stay = torch.cat((stay, torch.ones(1, dtype=torch.bool)))
        return Reply(out, torch.stack(steps))

    def _stay(self, prompt: Prompt, late: Late, seed: int) -> Tensor:
        """``[rows of the prompt]`` bool."""
        stay, visual = torch.ones(len(prompt), dtype=torch.bool), prompt.is_image.nonzero().flatten()
        if len(visual) == 0:
            return stay
        stay[visual] = False
        last = int(visual[-1]) == len(prompt) - 1
        if late.method in ("random", "stride"):
            stay[visual[torch.from_numpy(chosen(late, len(visual), last, seed))]] = True
        elif late.method == "attention":
            self._run(prompt.embeds, prompt.positions, prompt, torch.ones(len(prompt), dtype=torch.bool))
            assert self.scores is not None
            count = int(late.keep * len(visual) + 0.5)
            stay[self._best(visual.tolist(), count, last)] = True
        stay[-1] = True
        return stay

    def _best(self, visual: list[int], count: int, last: bool) -> list[int]:
        """The engine's choice, if it is one of the highest scores up to rounding, which may swap two that are equal."""
        assert self.scores is not None
        scores = self.scores
        for those, went in self.told:
            if those == visual and len(went) == count:
                left = set(visual) - set(went)
                lowest = min(float(scores[at]) for at in went if not (last and at == visual[-1]))
                if max(float(scores[at]) for at in left) <= lowest + ROUNDING:
                    return went
        raise AssertionError(f"of {len(self.told)} choices none has the {count} highest scores of {len(visual)}")

    def _run(self, embeds: Tensor, positions: Tensor, prompt: Prompt, stay: Tensor) -> Tensor:
        hidden, at = embeds[None], positions
        for index, layer in enumerate(self.language.layers):
            if index == self.first:
                hidden, at = hidden[:, stay], at[:, stay]
            ids = at[:, None] if self.reference.mrope else at
            mask = torch.full((hidden.shape[1],) * 2, float("-inf")).triu(1)[None, None]
            handle = layer.self_attn.register_forward_hook(self._note) if index == self.first - 1 else None
            turned = self.language.rotary_emb(hidden, ids)
            given = layer(hidden, attention_mask=mask, position_embeddings=turned, position_ids=ids)
            hidden = given[0] if isinstance(given, tuple) else given
            if handle is not None:
                handle.remove()
            if index < len(prompt.deep):
                hidden = hidden.clone()
                hidden[0, : len(prompt)][prompt.is_image] += prompt.deep[index]
        normed: Tensor = self.language.norm(hidden)[0]
        return normed

    def _note(self, module: Any, args: Any, output: Any) -> None:
        assert output[1] is not None
        self.scores = output[1][0, :, -1].mean(0)
