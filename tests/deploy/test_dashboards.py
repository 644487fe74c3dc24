"""The dashboards: built from their script, and nothing in them that is not exported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dashboards import (
    DEPLOY,
    FOLDER,
    RULES,
    dashboards,
    panel_expressions,
    panels,
    rule_expressions,
    variables,
)
from tests.deploy.promql import Unknown, catalog, check, metrics_in
from thriftree.server.metrics import Metrics
from thriftree.server.metrics_doc import ours, theirs

KNOWN = catalog([*ours(Metrics()), *theirs()])
PANELS = list(panel_expressions())


def test_committed_files_are_what_the_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DEPLOY / "grafana" / "build.py"), str(tmp_path)], check=True)
    built = {file.name: file.read_text() for file in tmp_path.glob("*.json")}
    assert len(built) == 3
    assert built == {file.name: file.read_text() for file in FOLDER.glob("*.json")}


@pytest.mark.parametrize(("where", "expression", "legend"), PANELS, ids=[where for where, _, _ in PANELS])
def test_panels_read_what_is_exported(where: str, expression: str, legend: str) -> None:
    labels = check(expression, KNOWN)
    assert "$" not in expression, "a variable that the dashboard does not have"
    assert set(re.findall(r"{{(\w+)}}", legend)) <= labels


@pytest.mark.parametrize("name", dashboards())
def test_variables_choose_by_what_is_exported(name: str) -> None:
    for variable in variables(dashboards()[name]):
        metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").split(", ")
        assert label == variable["name"] and label in KNOWN[metric]


@pytest.mark.parametrize("name", dashboards())
def test_panels_have_what_a_reader_needs(name: str) -> None:
    dashboard = dashboards()[name]
    rows = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    shown = [*rows, *panels(dashboard)]
    assert len({panel["id"] for panel in shown}) == len(shown)
    for panel in panels(dashboard):
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    assert not _overlaps(shown)


def _overlaps(shown: list[Any]) -> list[tuple[int, int]]:
    taken: dict[tuple[int, int], int] = {}
    twice = []
    for panel in shown:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            if cell in taken:
                twice.append(cell)
            taken[cell] = panel["id"]
    return twice


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(thriftree_request_total[5m])",
        'rate(thriftree_requests_total{user="x"}[5m])',
        "sum by (user) (rate(thriftree_requests_total[5m]))",
        "sum by (route) (sum by (tenant) (rate(thriftree_requests_total[5m])))",
        "histogram_quantile(0.9, sum by (route) (rate(thriftree_request_seconds_bucket[5m])))",
        "thriftree_request_seconds",
        "thriftree_ready / on (model_name) vllm:num_requests_running",
        "up and nothing_of_this_name",
    ],
)
def test_the_check_finds_what_is_not_there(wrong: str) -> None:
    with pytest.raises(Unknown):
        check(wrong, KNOWN)


def test_vllms_list_holds_nothing_unused() -> None:
    expressions = [text for _, text, _ in PANELS] + [text for _, text in rule_expressions()]
    used = set().union(*map(metrics_in, expressions))
    for family in theirs():
        assert used & set(catalog([family])) - {"up"}, family.name


def test_provisioning_points_at_the_files() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"] if volume.startswith("."))
    for folder in mounts:
        assert (DEPLOY / folder).is_dir(), folder
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/thriftree.yaml").read_text())["providers"][0]
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / Path(home).name).exists()
    for service in compose.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "image" not in service or ":" in service["image"]


def test_the_chart_carries_the_same_files() -> None:
    chart = DEPLOY.parent / "helm" / "thriftree" / "files"
    assert (chart / "rules.yaml").read_text() == RULES.read_text(), (
        "cp deploy/prometheus/rules.yaml helm/thriftree/files/"
    )
    copies = {file.name: file.read_text() for file in (chart / "dashboards").iterdir()}
    assert copies == {file.name: file.read_text() for file in FOLDER.iterdir()}, "cp them there too"
