"""``python -m helm.generate``: what the chart ships of other files; ``--check`` says what is stale, and fails.

The schema of the values (from `thriftree.server.settings` and `helm.chart_values`), the alert rules, the dashboards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from helm.chart_values import Values
from thriftree.server.settings import Settings

ROOT = Path(__file__).parents[1]
CHART = Path(__file__).parent / "thriftree"

#: Settings that the chart decides: a value of its own leads to each, so `settings` must not name them.
OWNED = {
    "drain_timeout": "drainSeconds",
    "engine": "engines",
    "log_file": "standard error",
    "auth.database": "keys.database",
    "auth.keys": "keys.secret",
    "auth.keys_file": "keys.secret",
    "quotas.redis": "redisSecret",
    "quotas.snapshot": "keys.database",
    "remote.key": "engineKeySecret",
}


def settings_schema() -> dict[str, Any]:
    """The settings as JSON schema, less what the chart owns; `$defs` beside it."""
    schema = Settings.model_json_schema()
    for path in OWNED:
        node = schema
        *sections, name = path.split(".")
        for section in sections:
            node = schema["$defs"][node["properties"][section]["$ref"].rpartition("/")[2]]
        del node["properties"][name]
    _drop(schema, "default", "title")
    kv = schema["$defs"]["KV"]["properties"]
    for setting, bare in ((schema["properties"]["thrift"], [False]), (kv["compression"], [False, True])):
        del setting["type"]
        setting["enum"] += bare  # what YAML makes of `off` and `on`
    kv["heads"]["anyOf"] = [{"type": kv["heads"].pop("type")}, {"const": False}]
    return schema


def _drop(node: Any, *names: str) -> None:
    """Take annotations away that only repeat names and defaults; not from what a schema calls its properties."""
    if isinstance(node, list):
        for entry in node:
            _drop(entry, *names)
    if isinstance(node, dict):
        for name in names:
            if not isinstance(node.get(name), dict) or "type" not in node[name]:
                node.pop(name, None)
        for entry in node.values():
            _drop(entry, *names)


def schema() -> dict[str, Any]:
    """`values.schema.json`. Helm checks the values over their defaults, so nothing is required."""
    settings = settings_schema()
    definitions = settings.pop("$defs")
    # Both models have, say, a Quotas: the chart's own get names of their own.
    chart = json.loads(json.dumps(Values.model_json_schema()).replace("#/$defs/", "#/$defs/Chart"))
    _drop(chart, "title", "required")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the thriftree chart",
        "type": "object",
        "additionalProperties": False,
        "properties": {**chart["properties"], "settings": settings, "global": {"type": "object"}},
        "$defs": definitions | {f"Chart{name}": node for name, node in chart["$defs"].items()},
    }


def files() -> dict[Path, str]:
    """Every made file with its content."""
    made = {CHART / "values.schema.json": json.dumps(schema(), indent=2) + "\n"}
    made[CHART / "files" / "rules.yaml"] = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text()
    for source in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")):
        made[CHART / "files" / "dashboards" / source.name] = source.read_text()
    return made


def stale() -> list[Path]:
    """Made files that differ from what they are made of, and dashboards that are no more."""
    made = files()
    left = [file for file in (CHART / "files" / "dashboards").glob("*") if file not in made]
    return left + [file for file, text in made.items() if not file.exists() or file.read_text() != text]


def main(argv: list[str]) -> int:
    found = stale()
    if "--check" in argv:
        print("\n".join(f"stale: {file.relative_to(ROOT)}" for file in found) or "the chart's made files are fresh")
        return int(bool(found))
    made = files()
    for file in found:
        if file in made:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(made[file])
        else:
            file.unlink()
        print(f"{'wrote' if file in made else 'removed'} {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
