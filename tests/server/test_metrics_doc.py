"""docs/metrics.md is what the code says, and the code says it of every metric."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import Counter

from thriftree.server.cli import main
from thriftree.server.metrics import Metrics
from thriftree.server.metrics_doc import LABELS, Family, ours, render

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
#: What dashboards of others rely on: never renamed.
PUBLIC = {
    "thriftree_requests_total": {"route", "status", "tenant"},
    "thriftree_request_seconds": {"route"},
    "thriftree_time_to_first_chunk_seconds": set(),
    "thriftree_queue_depth": set(),
    "thriftree_rejected_total": {"reason"},
    "thriftree_draft_tokens_total": {"method"},
    "thriftree_accepted_tokens_total": {"method"},
    "thriftree_tokens_per_step": set(),
    "thriftree_tree_nodes": set(),
    "thriftree_tenant_tokens_total": {"tenant", "kind"},
}


def test_the_committed_page_is_the_generated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(), "run: thriftree metrics > docs/metrics.md"


def test_public_names_are_there() -> None:
    found = {family.name: set(family.labels) for family in ours(Metrics())}
    assert {name: found.get(name) for name in PUBLIC} == PUBLIC


def test_every_family_is_explained() -> None:
    for family in ours(Metrics()):
        assert family.unit and family.help and set(family.labels) <= set(LABELS), family.name


def test_a_metric_added_later_is_on_the_page_or_an_error() -> None:
    metrics = Metrics()
    vars(metrics)["new"] = Counter("new_bytes", "Bytes", ["tenant"], registry=metrics.registry, namespace="thriftree")
    assert Family("thriftree_new_bytes_total", "counter", ("tenant",), "Bytes") in ours(metrics)
    with pytest.raises(KeyError):
        _ = Family("thriftree_new_furlongs", "gauge", (), "Furlongs").unit


def test_labels_that_nobody_uses_are_not_explained() -> None:
    assert {label for family in ours(Metrics()) for label in family.labels} == set(LABELS)
    assert "`thriftree_steps_total`" in render()
