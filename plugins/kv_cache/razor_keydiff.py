"""`razor_keydiff`: retrieval heads keep everything, the others keys unlike the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thriftree.plugins.kv_cache.keydiff import KeyDiff


@dataclass(frozen=True)
class RazorKeyDiff(KeyDiff):
    """Keep everything in the retrieval heads, in all others the rows whose keys point away from the mean.

    No attention is computed, so a prompt costs no more than without it. With `per_head` it kept the most facts of all
    that we compared, and changes the wording more than `razor_observed`.

    Paper: RazorAttention, arXiv 2407.15891, for the heads; the combination is ours.
    """

    paper: ClassVar[str] = "2407.15891"
    retrieval: ClassVar[bool] = True
