"""What becomes of one request's visual tokens. The scheduler and every rank of the worker come to the same, apart."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from thriftree.plugins.engine.contract_var import EXTRA_ARGS_KEY
from thriftree.plugins.engine.drafting import read_contract
from thriftree.plugins.vision.late import Late, checked
from thriftree.plugins.vision.late_rows import Gone, chosen, staying


@dataclass
class Fate:
    """Decided once, when the first rows of the prompt are computed; a request that loses its blocks keeps it."""

    late: Late
    prompt: int  # tokens
    visual: NDArray[np.int64]  # positions of the rows of its images, ascending
    seed: int = 0
    stays: int | None = None  # of these rows; None: not decided
    gone: Gone | None = None  # None: not decided, or the scores of this step decide

    @property
    def last(self) -> bool:
        """The prompt ends with a row of an image."""
        return bool(self.visual[-1] == self.prompt - 1)

    def decide(self, computed: int, scheduled: int) -> bool:
        """Called before a step with `scheduled` rows behind `computed` ones; True: the step's attention is needed.

        Scores are the last prompt token's, so all rows must come in its step. Where a prompt is cut, all rows stay.
        """
        if self.stays is None:
            count = staying(self.late, len(self.visual), self.last)
            if self.late.method != "attention" or count == len(self.visual):
                self.stays = count
                self.choose()
            elif computed == 0 and scheduled >= self.prompt:
                self.stays = count
            else:
                self.keep_all()
        return self.gone is None

    def choose(self, scores: Tensor | None = None) -> None:
        """`scores` ``[visual]``: where `attention` decides."""
        there = np.zeros(len(self.visual), dtype=bool)
        there[chosen(self.late, len(self.visual), self.last, self.seed, scores)] = True
        self.gone = Gone(self.visual[~there])

    def keep_all(self) -> None:
        self.stays, self.gone = len(self.visual), Gone()


def late_of(params: Any) -> Late | None:
    """What a request's sampling parameters say."""
    extra = getattr(params, "extra_args", None) or {}
    contract = read_contract(extra.get(EXTRA_ARGS_KEY, {}))
    return checked(contract["late"]) if isinstance(contract, Mapping) and "late" in contract else None


def fate_of(params: Any, prompt: int, features: Sequence[Any]) -> Fate | None:
    """The fate of a request; None: it did not ask, or it has no images.

    Args:
        prompt: tokens of its prompt.
        features: vLLM's. Videos are left alone.
    """
    late = late_of(params)
    places = [_rows(one.mm_position) for one in features if one.modality == "image"] if late is not None else []
    if late is None or not sum(map(len, places)):
        return None
    seed = zlib.crc32("\n".join(one.identifier for one in features).encode())
    fate = Fate(late, prompt, np.sort(np.concatenate(places)), seed)
    if params.prompt_logprobs is not None:
        fate.keep_all()  # those of rows that go no further do not exist
    return fate


def _rows(place: Any) -> NDArray[np.int64]:
    """Positions of an image's rows: its placeholder may have marks between them."""
    if place.is_embed is None:
        return np.arange(place.offset, place.offset + place.length, dtype=np.int64)
    found: NDArray[np.int64] = place.is_embed.nonzero().flatten().numpy().astype(np.int64)
    return found + place.offset
