"""The alert rules: they fire when they should (promtool), read what is exported, and say what an operator needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.dashboards import DEPLOY, RULES, alerts, rule_expressions, rules
from tests.deploy.promql import catalog, check
from thriftree.server.metrics import Metrics
from thriftree.server.metrics_doc import ours, theirs

FOLDER = DEPLOY / "prometheus"
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here; runs where Debian's package `prometheus` is installed"
)


def known() -> dict[str, frozenset[str]]:
    """What is exported, and what the rules record, each with its labels."""
    found = catalog([*ours(Metrics()), *theirs()])
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = check(rule["expr"], found)
    return found


@pytest.mark.parametrize(("name", "expression"), list(rule_expressions()))
def test_rules_read_what_is_exported(name: str, expression: str) -> None:
    check(expression, known())


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_alerts_say_what_an_operator_needs(alert: Any) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert re.fullmatch(r"docs/operate\.md#[a-z-]+", notes["runbook"])
    labels = check(alert["expr"], known())
    for label in re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]):
        assert label in labels, label


def test_runbook_has_every_section() -> None:
    page = DEPLOY.parent / "docs" / "operate.md"
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    wanted = {alert["annotations"]["runbook"].partition("#")[2] for alert in alerts()}
    assert wanted <= anchors


def test_every_alert_has_a_test_that_it_fires_and_one_that_it_does_not() -> None:
    cases = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    fires, quiet = set(), set()
    for case in (one for test in cases for one in test.get("alert_rule_test", ())):
        (fires if case["exp_alerts"] else quiet).add(case["alertname"])
    names = {alert["alert"] for alert in alerts()}
    assert fires == names and quiet == names


@promtool
@pytest.mark.parametrize(
    "words", ["check rules rules.yaml", "check config prometheus.yaml", "test rules rules_test.yaml"]
)
def test_promtool(words: str) -> None:
    if "config" in words:
        words = words.replace("config", "config --syntax-only")  # the key's file is the container's
    done = subprocess.run(["promtool", *words.split()], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_config_names_the_rules() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert config["rule_files"] == [RULES.name]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert config["scrape_configs"][0]["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    default = re.search(r":-(.+)}", compose["secrets"][secret]["file"])
    assert default and (DEPLOY / default.group(1)).exists()
