"""RazorAttention's head probe (arXiv 2407.15891): what do heads look at when random text repeats itself?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thriftree.plugins.kv_cache.heads import Fingerprint, HeadFile, rounded
from thriftree.plugins.kv_cache.hooked import Call, hooked, load

_ROWS = 128  # queries at a time: memory grows with the length, not with its square


@dataclass
class Probe:
    """An attention function that notes each head's scores on a text of `repeats` copies of `tokens` ids.

    In a random text only copies can tell what comes next, so a head that looks at them is one that retrieves.
    """

    tokens: int
    lead: int = 0  # ids in front of the first copy
    induction: dict[int, Tensor] = field(default_factory=dict)  # layer -> [H]
    echo: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, call: Call) -> Tensor:
        heads, length = call.query.shape[1], call.query.shape[2]
        group = heads // call.key.shape[1]
        keys, values = (x[0].repeat_interleave(group, dim=0) for x in (call.key, call.value))
        out, seen = torch.empty_like(call.query), torch.zeros(2, heads)
        for start in range(0, length, _ROWS):
            at = torch.arange(start, min(start + _ROWS, length))
            found = attention(call, call.query[0, :, at], keys, at)
            out[0, :, at] = found @ values[:, : found.shape[2]]
            seen += torch.stack([self._copies(found, at, after) for after in (1, 0)])
        # Queries of the first copy have nothing to look back to.
        seen = (seen / (length - self.lead - self.tokens)).view(2, -1, group).amax(dim=2)
        self.induction[call.layer], self.echo[call.layer] = seen
        return out

    def _copies(self, found: Tensor, at: Tensor, after: int) -> Tensor:
        """``[heads]`` the attention of all queries to earlier copies of their token, or to `after` places behind."""
        total = torch.zeros(found.shape[0])
        for back in range(self.tokens, int(at[-1]) - self.lead + 1, self.tokens):
            rows = (at - back >= self.lead).nonzero()[:, 0]
            total += found[:, rows, at[rows] - back + after].sum(dim=1)
        return total


def attention(call: Call, query: Tensor, keys: Tensor, at: Tensor) -> Tensor:
    """``[heads, T, M]`` probabilities of the queries at positions `at`; M: keys up to the last of them."""
    end = int(at[-1]) + 1
    logits = query @ keys[:, :end].transpose(1, 2) * call.scale
    if call.cap is not None:
        logits = call.cap * torch.tanh(logits / call.cap)
    distance = at[:, None] - torch.arange(end)
    hidden = distance < 0
    if call.window is not None:
        hidden |= distance >= call.window
    return logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)


def repeated(vocabulary: int, tokens: int, repeats: int, seed: int, avoid: set[int], lead: list[int]) -> Tensor:
    """``[1, N]``: `lead`, then `repeats` copies of `tokens` different ids.

    Raises:
        ValueError: the vocabulary is too small, or the numbers are.
    """
    if tokens < 2 or repeats < 2:
        raise ValueError("tokens and repeats: must be at least 2")
    ids = torch.tensor([i for i in range(vocabulary) if i not in avoid])
    if tokens > len(ids):
        raise ValueError(f"tokens: must be at most {len(ids)}, the size of the model's vocabulary, not {tokens}")
    drawn = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:tokens]]
    return torch.cat((torch.tensor(lead, dtype=torch.long), drawn.repeat(repeats)))[None]


@torch.inference_mode()
def probe(model: str, tokens: int = 500, repeats: int = 4, seed: int = 0) -> HeadFile:
    """Load the model (float32, on the CPU) and score every KV head of it.

    Raises:
        ValueError: a model without rotary embedding or KV heads, or numbers that do not fit it.
    """
    loaded = load(model)
    config = loaded.config
    if (longest := getattr(config, "max_position_embeddings", None)) and tokens * repeats + 1 > longest:
        raise ValueError(f"tokens * repeats: must be below the model's context of {longest}")
    special = {i for name in ("bos", "eos", "pad") for i in _ids(getattr(config, f"{name}_token_id", None))}
    lead = _ids(getattr(config, "bos_token_id", None))[:1]
    ids = repeated(config.vocab_size, tokens, repeats, seed, special, lead)
    noted = Probe(tokens, len(lead))
    with hooked(noted):
        loaded.get_decoder()(input_ids=ids, use_cache=False)
    fingerprint = Fingerprint.of(config)
    induction, echo = (
        rounded([scores[layer].tolist() for layer in range(fingerprint.layers)])
        for scores in (noted.induction, noted.echo)
    )
    name = Path(model).resolve().name if Path(model).is_dir() else model
    return HeadFile(name, fingerprint, induction, echo, tokens, repeats, seed)


def _ids(found: Any) -> list[int]:
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [int(found)]
