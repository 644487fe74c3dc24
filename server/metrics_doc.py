"""`docs/metrics.md`, written from the metrics themselves: ``thriftree metrics > docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thriftree.server.metrics import Metrics
from thriftree.server.vllm_families import VLLM

_HEAD = """# Metrics

Written from the code by `thriftree metrics > docs/metrics.md`; a test fails when the two differ.

`GET /metrics` answers Prometheus text: the gateway's own families (`thriftree_*`) and, with an engine in the same
process, vLLM's (`vllm:*`). A histogram `x` is exported as `x_bucket{le}`, `x_sum` and `x_count`. Counters start at zero
with the process. The dashboards and alert rules in `deploy/` use nothing that is not on this page.

With keys configured `/metrics` asks for one, like every route: `deploy/prometheus/prometheus.yaml` shows how Prometheus
presents it. `--auth-open-routes /metrics` opens it to everybody, with the names of all tenants in it.
"""

#: What each label of ours can be, and so why its values are few.
LABELS = {
    "route": "an open route as a template (`/v1/responses/{id}`), or `other` for everything that is closed",
    "status": "the HTTP status; `499`: the client left before the answer was whole",
    "tenant": "the tenant of the key that was shown; `default` where no keys are configured",
    "method": "the method in force (`thriftree methods` lists them), of KV compression in `thriftree_kv_*`, of "
    "pruning in `thriftree_visual_*`, of speculation elsewhere; `none`: without speculation",
    "kind": "`prompt` or `completion`",
    "reason": "refused: the answer's error code, `unauthorized` for a 401, "
    "for quotas `quota_requests`, `quota_tokens` or `quota_concurrent`; "
    "tried again: why",
    "deadline": "which of the `deadlines.*` settings",
    "store": "where quotas are kept: `redis` or `snapshot`",
    "engine": "an engine's address as given by `--engine`",
    "outcome": "how an attempt ended, as the gateway saw it",
}

#: Last word of a name (before `_total`) -> what is counted. Names that say something else are listed whole.
_UNITS = {
    **dict.fromkeys(("seconds", "bytes", "tokens", "requests"), ""),
    **dict.fromkeys(("rejected", "running", "depth", "exceeded", "inflight"), "requests"),
    "nodes": "tree nodes",
    "steps": "forward passes",
    "errors": "operations",
    "dropped": "tokens",
    "freed": "blocks",
    "retries": "attempts",
    "failures": "images",
    **dict.fromkeys(("ready", "up", "open"), "0 or 1"),
    "thriftree_tokens_per_step": "tokens per forward pass",
}


@dataclass(frozen=True)
class Family:
    """One metric family, under the name that expressions use (a counter's with `_total`)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def unit(self) -> str:
        word = self.name.removesuffix("_total").rsplit("_", 1)[-1]
        return _UNITS.get(self.name) or _UNITS[word] or word


def ours(metrics: Metrics) -> list[Family]:
    """Every family of the gateway's registry, by name.

    Raises:
        KeyError: a name whose unit nobody has said (`_UNITS`).
    """
    labels = {}
    for metric in vars(metrics).values():
        if hasattr(metric, "_labelnames"):  # the library has no public name for it
            (described,) = metric.describe()
            labels[described.name] = tuple(metric._labelnames)
    found = []
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        found.append(Family(name, family.type, labels.get(family.name, ()), family.documentation))
    return sorted(found, key=lambda family: family.name)


def theirs() -> list[Family]:
    """The families of vLLM that the dashboards and rules use; more are exported."""
    return [Family(*row) for row in VLLM]


def render() -> str:
    """The page."""
    return "\n".join([_HEAD, *_own(ours(Metrics())), *_vllm(theirs())]) + "\n"


def _own(families: Sequence[Family]) -> Iterator[str]:
    yield "## thriftree\n"
    yield from _table(
        ("metric", "type", "labels", "unit", "meaning"),
        [(f"`{f.name}`", f.kind, _listed(f.labels), f.unit, f.help) for f in families],
    )
    yield "\n### Labels\n"
    used = dict.fromkeys(label for family in families for label in family.labels)
    yield from _table(("label", "values"), [(f"`{label}`", LABELS[label]) for label in used])


def _vllm(families: Sequence[Family]) -> Iterator[str]:
    yield "\n## vLLM\n"
    yield "Those that the dashboards and alert rules use. `model_name` is the served model, `engine` the number of the"
    yield "engine core. Behind `--engine http://...` the engines export them themselves: scrape those too.\n"
    yield from _table(
        ("metric", "type", "labels", "meaning"), [(f"`{f.name}`", f.kind, _listed(f.labels), f.help) for f in families]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(row) + " |"


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)
