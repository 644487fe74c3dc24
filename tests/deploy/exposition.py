"""What a server exports, read from its `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from thriftree.server.metrics import Metrics
from thriftree.server.metrics_doc import ours, theirs

#: Name -> type, and labels where there is a series yet.
Exported = Mapping[str, tuple[str, frozenset[str] | None]]


def exported(text: str) -> dict[str, tuple[str, frozenset[str] | None]]:
    """Every family of a Prometheus text."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = [frozenset(sample.labels) - {"le"} for sample in family.samples]
        found[name] = (family.type, frozenset().union(*labels) if labels else None)
    return found


def differences(there: Exported) -> list[str]:
    """Where the server and the metrics page disagree: names, types, labels. vLLM's families all have series at once."""
    wrong = []
    for family in (*ours(Metrics()), *theirs()):
        kind, labels = there.get(family.name, ("nothing", None))
        unseen = labels is None and family.name.startswith("thriftree_")
        if kind != family.kind or not (unseen or labels == frozenset(family.labels)):
            wrong.append(f"{family.name}: {family.kind} {set(family.labels)}, exported {kind} {labels and set(labels)}")
    return wrong
