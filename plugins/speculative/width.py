"""How many nodes each request gets in this step: as many as make tokens per second rise, often none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log
from typing import Any

from thriftree.plugins.speculative.cost import StepCost
from thriftree.plugins.speculative.tree import DraftTree


@dataclass(frozen=True, slots=True)
class WidthConfig:
    max_nodes: int = 16  #: per request
    max_step_nodes: int = 64  #: all requests together
    margin: float = 0.01  #: gain that must be promised before nodes are verified at all
    probe_every: int = 128  #: steps between looks at what is believed not to pay
    settle: int = 24  #: steps before a load that was switched on may be switched off again
    stale_bonus: float = 0.05  #: how much cheaper a row count may have become in `probe_every` steps unmeasured


@dataclass(slots=True)
class _Load:
    """What was learned at one number of tokens per plain step."""

    awake: bool = True
    gain: float = 0.0  # running mean of log(tokens per second with drafts / without)
    steps: int = 0  # since awake or asleep
    probing: int = 0  # steps left of the current look
    probed: list[float] = field(default_factory=list)
    reach: float = 0.0  # largest tree that was worth verifying lately


_PROBE_STEPS = 4
_SLACK = 4
#: Weight of the belief that values are honest, in promised tokens (a hundred steps' worth are remembered).
_DOUBT = 4.0


class WidthController:
    """Per step: `plan` before drafting, `choose` after it, `learn_step` (and `learn_draft`) when it ran.

    The expected tokens of a step are its plain ones plus the nodes' values, corrected by how much of what
    values promised was realised so far; its time is the measured cost of its rows plus that of drafting.
    `choose` takes the number of nodes with the most tokens per second, over all lengths since costs need not
    be convex. A load at which drafts do not even pay for themselves is put to sleep and looked at again every
    `probe_every` steps.

    Decisions rest on clocks, so only one process may make them (tensor-parallel ranks would disagree).
    """

    def __init__(self, config: WidthConfig = WidthConfig(), cost: StepCost | None = None) -> None:
        self.config = config
        self.cost = cost or StepCost()
        self.draft_seconds = 0.0002  # per request
        self._promised = self._accepted = 0.0
        self._loads: dict[int, _Load] = {}
        self._steps = 0
        self._surprised = False

    @property
    def ratio(self) -> float:
        """Realised acceptance over promised."""
        return min((self._accepted + _DOUBT) / (self._promised + _DOUBT), 1.5)

    def plan(self, requests: int, *, rows: int = 0, tokens: int = 0) -> int:
        """Nodes that each of `requests` may draft for the next step; 0: do not draft.

        Args:
            requests: requests that could have a tree; each contributes one row and one token anyway.
            rows: rows of the rest of the step (prefill, requests without drafts).
            tokens: tokens that those rows emit.
        """
        if requests <= 0:
            return 0
        load = self._load(requests + tokens)
        load.steps += 1
        most = self.config.max_nodes
        if load.awake or load.probing:
            return min(most, ceil(load.reach) + _SLACK)
        if load.steps % self.config.probe_every:
            return 0
        load.probing, load.probed = _PROBE_STEPS, []
        return min(most, ceil(load.reach) + _SLACK)

    def choose(self, trees: Sequence[DraftTree], *, rows: int = 0, tokens: int = 0) -> list[int]:
        """How many of its first nodes each tree may keep. `rows` and `tokens` as in `plan`.

        An empty tree is a request that just takes part in the step with its one row and token.
        """
        self._steps += 1
        plain = len(trees) + tokens
        base = len(trees) + rows
        if not trees:
            return []
        if not rows and self.cost.age(base) > 2 * self.config.probe_every:
            return [0] * len(trees)  # the plain step is what everything is compared with: know its cost
        load = self._load(plain)
        nodes = sorted(
            (-value, tree, node) for tree, draft in enumerate(trees) for node, value in enumerate(draft.values)
        )[: self.config.max_step_nodes]
        cost, ratio, drafting = self.cost, self.ratio, self.draft_seconds * len(trees)
        off = plain / cost.seconds(base)  # tokens per second without speculation
        explore = self._surprised or self._steps % self.config.probe_every == 0
        none_rate = plain / (cost.seconds(base) + drafting)
        best, best_rate = 0, none_rate * (1 + self.config.margin)
        probe, probe_rate = 0, 0.0
        expected = float(plain)
        for n, (negative, _, _) in enumerate(nodes, 1):
            expected -= negative * ratio
            seconds = cost.seconds(base + n)
            if explore:
                seconds *= 1 - min(cost.age(base + n) // self.config.probe_every * self.config.stale_bonus, 0.5)
            rate = expected / (seconds + drafting)
            if rate > best_rate:
                best, best_rate = n, rate
            if rate > probe_rate:
                probe, probe_rate = n, rate
        if self._follow(load, log((best_rate if best else none_rate) / off)) and not best:
            best = probe
        sizes = [0] * len(trees)
        for _, tree, node in nodes[:best]:
            sizes[tree] = max(sizes[tree], node + 1)
        load.reach = max(float(max(sizes)), load.reach - 0.1)
        return sizes

    def learn_step(self, rows: int, seconds: float, promised: float = 0.0, accepted: int = 0) -> None:
        """A step ran: all its rows, its time, the sum of the verified nodes' values, and how many were
        accepted.

        Leave out steps whose time says nothing about rows (compilation, first use of a shape): ``seconds=0``.
        """
        self._surprised = self.cost.measure(rows, seconds)
        if promised > 0:
            self._promised = 0.99 * self._promised + promised
            self._accepted = 0.99 * self._accepted + accepted

    def learn_draft(self, requests: int, seconds: float) -> None:
        """Drafting for `requests` took this long."""
        if requests > 0:
            self.draft_seconds += 0.05 * (seconds / requests - self.draft_seconds)

    def summary(self) -> dict[str, Any]:
        """What operators see."""
        return {
            "ratio": self.ratio,
            "draft_seconds": self.draft_seconds,
            "step_seconds": self.cost.table(),
            "loads": {tokens: "on" if load.awake else "off" for tokens, load in sorted(self._loads.items())},
        }

    def _load(self, tokens: int) -> _Load:
        key = tokens if tokens <= 8 else 6 + tokens.bit_length()
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load(reach=float(self.config.max_nodes))
        return load

    def _follow(self, load: _Load, gain: float) -> bool:
        """Sleep and wake by what this step promises; True where a look must verify something to learn its
        cost."""
        if load.awake:
            load.gain += (gain - load.gain) * max(0.05, 1 / load.steps if load.steps else 1.0)
            if load.gain <= 0 and load.steps >= self.config.settle:
                load.awake, load.steps = False, 0
            return False
        if not load.probing:
            return False
        load.probing -= 1
        load.probed.append(gain)
        if load.probing:
            return load.probing == _PROBE_STEPS - 1
        load.gain = sum(load.probed) / len(load.probed)
        if load.gain > self.config.margin:
            load.awake, load.steps, load.reach = True, 0, float(self.config.max_nodes)
        return False
