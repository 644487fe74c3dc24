"""A growing text that knows where its current ending occurred before. Appending costs well under a
microsecond."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

#: Measured on CPython 3.11 for text with few repeats (the worst case): two dict entries and two chain links.
TOKEN_BYTES = 160
#: Between two texts in one index. Equal to no token, so no match crosses it.
GAP = -1


class Text:
    """Tokens, and for each position the previous position of the same token and of the same two tokens.

    These chains are a suffix tree's two upper levels; longer matches are found by walking back from each
    link, which is cheaper than keeping deeper levels up to date for every token that is never looked up.
    """

    __slots__ = ("_last", "_previous", "_previous_pair", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[int, int] = {}
        self._previous = array("i")
        self._previous_pair = array("i")

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        text, last = self.tokens, self._last
        link, link_pair = self._previous.append, self._previous_pair.append
        get = last.get
        before = text[-1] if text else GAP
        for at, token in enumerate(tokens, len(text)):
            link(get(token, -1))
            last[token] = at
            pair = (before + 1) << 32 | token  # + 1: never the key of a single token, not even after a gap
            link_pair(get(pair, -1))
            last[pair] = at
            before = token
        text.extend(tokens)

    def gap(self) -> None:
        """End a text, so that the next one does not read on from it."""
        self.tokens.append(GAP)
        self._previous.append(-1)
        self._previous_pair.append(-1)

    def own_matches(self, longest: int, tries: int) -> tuple[int, list[int]]:
        """Where the text's own ending occurred before: `matches` for the text itself."""
        end = len(self.tokens) - 1
        if end < 1:
            return 0, []
        at = self._previous_pair[end]
        if at >= 1:
            return self._longest(self.tokens, end, at, self._previous_pair, 2, longest, tries)
        at = self._previous[end]
        return self._longest(self.tokens, end, at, self._previous, 1, longest, tries) if at >= 0 else (0, [])

    def matches(self, context: Sequence[int], longest: int, tries: int) -> tuple[int, list[int]]:
        """The length of the longest match of the context's ending, and where it continues, most recent first.

        Looks at the `tries` most recent places that share the last two tokens (else the last one), and
        compares at most `longest` tokens.
        """
        end = len(context) - 1
        if end < 0:
            return 0, []
        if end >= 1:
            at = self._last.get((context[-2] + 1) << 32 | context[-1], -1)
            if at >= 1:
                found = self._longest(context, end, at, self._previous_pair, 2, longest, tries)
                if found[1]:  # else the text ends there
                    return found
        at = self._last.get(context[-1], -1)
        return self._longest(context, end, at, self._previous, 1, longest, tries) if at >= 0 else (0, [])

    def _longest(
        self,
        context: Sequence[int],
        end: int,
        at: int,
        chain: array[int],
        known: int,
        longest: int,
        tries: int,
    ) -> tuple[int, list[int]]:
        tokens = self.tokens
        size = len(tokens)
        best, places = 0, []
        while at >= 0 and tries:
            tries -= 1
            if at + 1 < size and tokens[at + 1] != GAP:
                length = known
                bound = min(longest, at + 1, end + 1)
                while length < bound and tokens[at - length] == context[end - length]:
                    length += 1
                if length > best:
                    best, places = length, [at + 1]
                elif length == best:
                    places.append(at + 1)
            at = chain[at]
        return best, places

    def state_bytes(self) -> int:
        return len(self.tokens) * TOKEN_BYTES


class Library:
    """Texts that a tenant's finished requests left, in two generations: the older is dropped when the younger
    is full."""

    __slots__ = ("_old", "_young", "limit")

    def __init__(self, limit: int = 65_536) -> None:
        self.limit = limit
        self._old = Text()
        self._young = Text()

    def add(self, tokens: Sequence[int]) -> None:
        if len(self._young) + len(tokens) + 1 > self.limit // 2:
            self._old, self._young = self._young, Text()
        self._young.extend(tokens[: self.limit // 2 - 1])
        self._young.gap()

    def matches(self, context: Sequence[int], longest: int, tries: int) -> tuple[int, list[int], list[int]]:
        """Length, places and the tokens that the places point into; the younger text wins a tie."""
        length, places = self._young.matches(context, longest, tries)
        if len(self._old) and length < longest:
            old, old_places = self._old.matches(context, longest, tries)
            if old > length:
                return old, old_places, self._old.tokens
        return length, places, self._young.tokens

    def shrink(self, share: float) -> None:
        """Forget the older texts, and the younger too where that frees nothing."""
        if not len(self._old):
            self._young = Text()
        self._old = Text()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def state_bytes(self) -> int:
        return self._young.state_bytes() + self._old.state_bytes()
