"""Every expression of the dashboards and the alert rules, ready to be parsed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "grafana" / "dashboards"
RULES = DEPLOY / "prometheus" / "rules.yaml"
_MACROS = {"$__rate_interval": "5m", "$__range": "1h"}


def dashboards() -> dict[str, Any]:
    return {file.name: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


def variables(dashboard: Any) -> list[Any]:
    return [one for one in dashboard["templating"]["list"] if one["type"] == "query"]


def panels(dashboard: Any) -> list[Any]:
    """All but the rows, those of closed rows included."""
    every = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", ()))]
    return [panel for panel in every if panel["type"] != "row"]


def panel_expressions() -> Iterator[tuple[str, str, str]]:
    """``("service.json: By tenant", expression, legend)`` with Grafana's variables put in."""
    for file, dashboard in dashboards().items():
        everything = {f"${one['name']}": one["allValue"] for one in variables(dashboard)}
        for panel in panels(dashboard):
            for target in panel["targets"]:
                expression = target["expr"]
                for name, value in {**_MACROS, **everything}.items():
                    expression = expression.replace(name, value)
                yield f"{file}: {panel['title']}", expression, target["legendFormat"]


def rules() -> list[Any]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[Any]:
    return [rule for rule in rules() if "alert" in rule]


def rule_expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
