"""What the training makes small: wrong labels of patches, wrong names of visual tokens, wrong answers."""

from __future__ import annotations

from typing import Any

from thriftree.zoo.shapes_vl.lessons import Batch, Writer
from thriftree.zoo.shapes_vl.pool import Labels
from thriftree.zoo.shapes_vl.scenes import CHARACTERS, COLOURS, SHAPES


def seeing_loss(heads: Any, features: Any, batch: Labels) -> Any:
    """What, colour, order, middle and place for every patch; the scene's names for CLS."""
    import torch
    from torch.nn import functional as F

    label = batch.patches
    whole, patches = features[:, 0], features[:, 1:]
    shown = label["what"] > 0
    weight = torch.where(shown, 1.0, 0.3)

    def classes(name: str) -> Any:
        loss = F.cross_entropy(heads[name](patches).transpose(1, 2), label[name].long(), reduction="none")
        return (loss * weight).sum() / shown.sum()

    middle = F.binary_cross_entropy_with_logits(heads["middle"](patches)[..., 0], label["middle"], reduction="none")
    places = F.smooth_l1_loss(heads["where"](patches), label["where"], beta=0.1, reduction="none").mean(-1)
    where = (places * shown).sum() / shown.sum()
    said = F.binary_cross_entropy_with_logits(heads["names"](whole), batch.names)
    total: Any = classes("what") + classes("colour") + 0.5 * classes("order")
    return total + (middle * weight).sum() / shown.sum() + 2 * where + 10 * said


def answering_loss(model: Any, features: Any, batch: Batch) -> Any:
    """Cross entropy of the answers' tokens. `batch`: tensors."""
    from torch.nn import functional as F

    logits, label = answer_logits(model, features, batch)
    return F.cross_entropy(logits, label)


def answer_logits(model: Any, features: Any, batch: Batch) -> tuple[Any, Any]:
    """Logits [n, vocabulary] where answers are given, and the right tokens [n]."""
    import torch

    rows, ids = batch.rows, batch.ids
    seen = model.model.multi_modal_projector(
        torch.gather(features[:, 1:], 1, rows[..., None].expand(-1, -1, features.shape[-1]))
    )
    embedded = model.model.language_model.embed_tokens(ids)
    start = 2  # after <s> and the role
    embedded = torch.cat([embedded[:, :start], seen, embedded[:, start + rows.shape[1] :]], 1)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=batch.position,
        attention_mask=_mask(batch.block, batch.chained),
        use_cache=False,
    ).last_hidden_state
    label = batch.label[:, 1:]
    given = label >= 0
    return model.lm_head(hidden[:, :-1][given]), label[given]


def _mask(block: Any, chained: Any) -> Any:
    """[B, 1, T, T]: the past, but of other questions only where they are a conversation."""
    import torch

    length = block.shape[1]
    mine, theirs = block[:, :, None], block[:, None, :]
    past = torch.ones(length, length, dtype=torch.bool, device=block.device).tril()
    allowed = (theirs == -1) | (theirs == mine) | (chained[:, None, None] & (theirs >= 0))
    return ((past & allowed & (theirs != -2)) | torch.eye(length, dtype=torch.bool, device=block.device))[:, None]


class Naming:
    """Projected visual tokens lie near the words for what they show, as CLIP's would: then a word finds its things."""

    def __init__(self, writer: Writer) -> None:
        asked = [f" {word}" for word in (*COLOURS, *SHAPES)]
        said = [*COLOURS, *SHAPES, *CHARACTERS]
        self._asked, self._said = ([writer.ids(word)[0] for word in each] for each in (asked, said))

    def loss(self, model: Any, features: Any, batch: Labels) -> Any:
        """Cross entropy among colours, among shapes and among characters. `features`: the tower's, detached."""
        from torch.nn import functional as F

        seen = model.model.multi_modal_projector(features[:, 1:])
        what, colour = batch.patches["what"].long(), batch.patches["colour"].long()
        things, letters = (what > 0) & (what <= len(SHAPES)), what > len(SHAPES)
        asked = model.model.language_model.embed_tokens.weight[self._asked]
        said = model.lm_head.weight[self._said]
        split, end = len(COLOURS), len(COLOURS) + len(SHAPES)
        total: Any = F.cross_entropy(seen[letters] @ said[end:].T, what[letters] - len(SHAPES) - 1)
        for table in (asked, said):
            total = total + F.cross_entropy(seen[things] @ table[:split].T, colour[things] - 1)
            total = total + F.cross_entropy(seen[things] @ table[split:end].T, what[things] - 1)
        return total
