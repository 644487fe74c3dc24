"""A model with weights set by hand that looks things up: 16 pairs of key and value in 256 tokens of filler.

Layer 0 copies the previous token. Layer 1 has eight heads: one (`RETRIEVAL`) attends to the token after an earlier
occurrence of the current one and copies it, the others look weakly at like tokens nearby. The cache of layer 1 is
compressed before the question (one of the keys) comes; the answer is the value token with the largest sum over heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from thriftree.plugins.kv_cache.base import Method
from thriftree.plugins.kv_cache.rows import Rows
from thriftree.plugins.kv_cache.select import keep_mask

HEADS, RETRIEVAL = 8, 3
PAIRS, FILLER, LETTERS = 16, 256, 64  # 64 keys, 64 values, 64 kinds of filler
TOKENS = FILLER + 2 * PAIRS
SINKS, RECENT = 4, 8
_SHARP, _WEAK, _NEAR = 14.0, 1.0, 0.05


@dataclass
class Case:
    text: Tensor  # [TOKENS]
    question: int
    answer: int

    @classmethod
    def drawn(cls, seed: int) -> Case:
        made = torch.Generator().manual_seed(seed)
        keys, values = (torch.randperm(LETTERS, generator=made)[:PAIRS] for _ in range(2))
        filler = torch.randint(0, LETTERS, (FILLER,), generator=made) + 2 * LETTERS
        places = torch.randperm(FILLER, generator=made)[:PAIRS].sort().values.tolist()
        text: list[int] = []
        for i, token in enumerate(filler.tolist()):
            text.append(token)
            if i in places:
                pair = places.index(i)
                text += [int(keys[pair]), LETTERS + int(values[pair])]
        asked = int(torch.randint(0, PAIRS, (1,), generator=made))
        return cls(torch.tensor(text), int(keys[asked]), int(values[asked]))


def projected(tokens: Tensor, previous: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[HEADS, T, 3 * LETTERS + 1]`` of layer 1. The last channel carries the distance."""
    now, before = (one_hot(x, 3 * LETTERS).float() for x in (tokens, previous))
    one, zero = torch.ones(len(tokens), 1), torch.zeros(len(tokens), 1)
    queries = torch.cat((_WEAK * now, one), dim=1).repeat(HEADS, 1, 1)
    keys = torch.cat((now, _NEAR * at[:, None].float()), dim=1).repeat(HEADS, 1, 1)
    queries[RETRIEVAL] = torch.cat((_SHARP * now, zero), dim=1)
    keys[RETRIEVAL] = torch.cat((before, zero), dim=1)
    return queries, keys, torch.cat((now, zero), dim=1).repeat(HEADS, 1, 1)


def recalled(case: Case, method: Method, share: float, whole: tuple[int, ...] = ()) -> bool:
    """Whether the answer is found when `share` of the rows stay, in the heads `whole` all of them."""
    at = torch.arange(TOKENS)
    previous = torch.cat((case.text[:1], case.text[:-1]))
    queries, keys, values = projected(case.text, previous, at)
    keep = (round(share * TOKENS) * HEADS - TOKENS * len(whole)) // (HEADS - len(whole))
    rows = Rows(
        pos=at.repeat(HEADS, 1), length=TOKENS, prompt=TOKENS, keep=keep, seed=case.question, layer=1, layers=2,
        read_keys=lambda: keys, read_values=lambda: values,
        queries=queries[:, None, TOKENS - method.window :] if method.window else None,
    )  # fmt: skip
    if method.observes:
        logits = (queries @ keys.mT).masked_fill(at > at[:, None], -torch.inf)[:, None]
        rows.sums = method.weigh(logits, rows, at).sum(dim=(1, 2))
    mask = keep_mask(method.score(rows), rows.pos, keep, TOKENS, SINKS, RECENT)
    mask[list(whole)] = True
    return _answer(case, keys, values, mask) == case.answer


def _answer(case: Case, keys: Tensor, values: Tensor, mask: Tensor) -> int:
    question = torch.tensor([case.question])
    query, key, value = projected(question, question, torch.tensor([TOKENS]))
    keys, values = torch.cat((keys, key), dim=1), torch.cat((values, value), dim=1)
    seen = torch.cat((mask, torch.ones(HEADS, 1, dtype=torch.bool)), dim=1)
    weights = (query @ keys.mT).masked_fill(~seen[:, None], -torch.inf).softmax(dim=-1)
    return int((weights @ values).sum(dim=(0, 1))[LETTERS : 2 * LETTERS].argmax())
