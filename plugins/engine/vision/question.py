"""The question that goes with an image, for methods that read it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

#: Tokens of a question that are read.
MOST = 512
#: Words that chat templates put around what people say.
_ROLES = frozenset(("user", "human", "assistant", "system"))


def says_something(text: str) -> bool:
    """Whether a question has a word of its own: templates leave the name of a role where nobody wrote anything."""
    return any(word not in _ROLES for word in re.findall(r"\w+", text.lower()))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that are no text: also marks of turns, which a tokenizer may have under none of its names."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {token for token, one in added.items() if one.special}


def questions(
    tokens: Sequence[int], image: int, special: Collection[int], frame: Collection[int] = ()
) -> list[tuple[int, ...]]:
    """For each image in the prompt the text of its turn: what follows it up to a special token, else what leads to it.

    A conversation that goes on leaves the question of an earlier image as it is, so that caches keep working.

    Args:
        tokens: of the prompt, `image` once for each image.
        image: the token that stands for an image.
        special: tokens that end a text.
        frame: tokens around images, which do not.
    """
    skipped = {*frame, image}
    stop = {*special} | skipped
    places = [at for at, token in enumerate(tokens) if token == image]
    return [_run(tokens[at:], skipped, stop) or _run(tokens[at::-1], skipped, stop)[::-1] for at in places]


def _run(tokens: Sequence[int], skipped: Collection[int], stop: Collection[int]) -> tuple[int, ...]:
    """The text after what is skipped, at most `MOST` tokens of it."""
    start = next((i for i, token in enumerate(tokens) if token not in skipped), len(tokens))
    end = next((i for i in range(start, len(tokens)) if tokens[i] in stop), len(tokens))
    return tuple(tokens[start : min(end, start + MOST)])
