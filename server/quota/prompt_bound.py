"""Which tokenizers make at most one token of a byte: there a text's length bounds its tokens, without any counting.

Byte-level BPE begins with one symbol per byte and only ever merges symbols; an added token stands for at least one
character, and special tokens come in a constant number. Whatever changes the text before (a normalizer, a space put in
front of each word) voids that, so a tokenizer with any part that is not known here has no bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Pre-tokenizers that cut a text and add nothing to it.
_CUTS = frozenset({"Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"})
#: Post-processors whose tokens are counted by `num_special_tokens_to_add`, or that add none.
_AROUND = frozenset({"ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"})


def bytes_bound(spec: Mapping[str, Any]) -> bool:
    """`spec`: a tokenizer as ``tokenizer.json`` has it."""
    return spec["model"].get("type") == "BPE" and spec.get("normalizer") is None and _cuts(spec) and _around(spec)


def _cuts(spec: Mapping[str, Any]) -> bool:
    """Cuts, and then bytes as symbols, once."""
    *before, last = _parts(spec.get("pre_tokenizer"), "pretokenizers") or [{}]
    byte_level = last.get("type") == "ByteLevel" and last.get("add_prefix_space") is False
    return byte_level and all(one.get("type") in _CUTS for one in before)


def _around(spec: Mapping[str, Any]) -> bool:
    return all(one.get("type") in _AROUND for one in _parts(spec.get("post_processor"), "processors"))


def _parts(one: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if one is None:
        return []
    return list(one[name]) if one.get("type") == "Sequence" else [one]
