"""Grafana's JSON in few words: panels with a unit and a description, in rows, under a dashboard with its variables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
_SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
_HEIGHT, _WIDTH = 8, 24


@dataclass(frozen=True)
class Query:
    """An expression, and what its series are called (`{{label}}` is replaced)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`unit` is Grafana's name of it; `steps`: where the colour changes, ``((80, "orange"), (95, "red"))``."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    steps: tuple[tuple[float, str], ...] = ()
    stacked: bool = False
    most: float | None = None

    def json(self, number: int, x: int, y: int, width: int) -> Json:
        targets = [
            {"refId": chr(65 + i), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend or "__auto"}
            for i, query in enumerate(self.queries)
        ]
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _SOURCE,
            "gridPos": {"h": 4 if self.kind == "stat" else _HEIGHT, "w": width, "x": x, "y": y},
            "targets": targets,
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _STAT if self.kind == "stat" else _SERIES,
        }

    def _defaults(self) -> Json:
        base: Json = {"color": "green" if self.steps else "text", "value": None}
        bounds = [base, *({"color": color, "value": value} for value, color in self.steps)]
        found: Json = {"unit": self.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": bounds}}
        if self.most is not None:
            found["max"] = self.most
        if self.kind == "timeseries":
            found["custom"] = {
                "fillOpacity": 20 if self.stacked else 8,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none"},
                "thresholdsStyle": {"mode": "line" if self.steps else "off"},
            }
        return found


_STAT: Json = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
_SERIES: Json = {
    "legend": {"displayMode": "list", "placement": "bottom"},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


@dataclass(frozen=True)
class Row:
    """Panels side by side; `closed`: shown when somebody opens the row."""

    title: str
    panels: tuple[Panel, ...]
    closed: bool = False


@dataclass(frozen=True)
class Variable:
    """A label to choose by, the metric whose values are offered, and what "All" stands for."""

    label: str
    metric: str
    everything: str = ".*"

    def json(self) -> Json:
        return {
            "name": self.label,
            "label": self.label.replace("_name", "").capitalize(),
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": f"label_values({self.metric}, {self.label})", "refId": self.label},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": self.everything,
            "current": {"text": "All", "value": "$__all"},
        }


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...]

    def text(self) -> str:
        """The file's text."""
        return json.dumps(self.json(), indent=1) + "\n"

    def json(self) -> Json:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["thriftree"],
            "schemaVersion": 39,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [{"type": "dashboards", "tags": ["thriftree"], "title": "thriftree", "includeVars": True}],
            "templating": {"list": self._variables()},
            "panels": self._panels(),
        }

    def _variables(self) -> list[Json]:
        source: Json = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
        return [source, *(variable.json() for variable in self.variables)]

    def _panels(self) -> list[Json]:
        made: list[Json] = []
        y = 0
        for row in self.rows:
            bar: Json = {"id": 100 * y + 1, "type": "row", "title": row.title, "collapsed": row.closed}
            bar["gridPos"] = {"h": 1, "w": _WIDTH, "x": 0, "y": y}
            width = _WIDTH // len(row.panels)
            placed = [panel.json(bar["id"] + 1 + i, i * width, y + 1, width) for i, panel in enumerate(row.panels)]
            bar["panels"] = placed if row.closed else []
            made += [bar] if row.closed else [bar, *placed]
            y += 1 + max(panel["gridPos"]["h"] for panel in placed)
        return made
