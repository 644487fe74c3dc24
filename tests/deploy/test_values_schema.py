"""`helm/generate.py`: what the chart ships of other files is fresh, and the schema refuses what it should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from helm import generate
from helm.chart_values import Part, Values
from tests.deploy.helm_cli import CHART, HelmError, template
from thriftree.server import settings

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


def test_made_files_are_fresh() -> None:
    assert generate.stale() == [], "run `python -m helm.generate`"


def test_stale_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "CHART", tmp_path)
    made = generate.files()
    assert len(made) >= 5 and sorted(generate.stale()) == sorted(made)
    for file, text in made.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert generate.stale() == []
    left = tmp_path / "files" / "dashboards" / "gone.json"
    left.write_text("{}")
    (tmp_path / "files" / "rules.yaml").write_text("groups: []")
    assert generate.stale() == [left, tmp_path / "files" / "rules.yaml"]


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(generate.schema())


def test_defaults_name_every_value() -> None:
    """Pydantic asks for all of them, strictly; `values.yaml` is where an operator reads what there is."""
    chart = {name: value for name, value in DEFAULTS.items() if name != "settings"}
    Values.model_validate(chart, strict=True)
    assert DEFAULTS["settings"] == {}


def test_every_part_is_closed() -> None:
    parts = [Values, *Part.__subclasses__()]
    assert all(part.model_config.get("extra") == "forbid" for part in parts)
    definitions = generate.schema()["$defs"]
    assert all(node["additionalProperties"] is False for node in definitions.values())


def test_owned_settings_exist() -> None:
    assert set(generate.OWNED) <= {".".join(path) for path, _ in settings.leaves()}


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {path[0]: nested(path[1:], value) if path[1:] else value}


@pytest.mark.parametrize("path", [path for path, _ in settings.leaves()], ids=".".join)
def test_a_setting_is_taken_unless_the_chart_owns_it(path: tuple[str, ...]) -> None:
    node: Any = settings.Settings().model_dump(mode="json")
    for name in path:
        node = node[name]
    check = jsonschema.Draft7Validator(generate.schema())
    errors = list(check.iter_errors({"settings": nested(path, node)}))
    assert [error.validator for error in errors] == (
        ["additionalProperties"] if ".".join(path) in generate.OWNED else []
    )


@pytest.mark.parametrize("kv", [{"compression": False}, {"compression": True}, {"compression": "on"}, {"heads": False}])
def test_words_that_yaml_reads_as_truth_values(kv: dict[str, Any]) -> None:
    values = {"settings": {"kv": kv}}
    jsonschema.Draft7Validator(generate.schema()).validate(values)
    settings.Settings(**values["settings"])  # type: ignore[arg-type]


WRONG: Mapping[str, dict[str, Any]] = {
    "a misspelt value": {"replica": 2},
    "a misspelt value inside": {"keys": {"databse": {}}},
    "a misspelt setting": {"settings": {"trift": "off"}},
    "a misspelt setting inside": {"settings": {"limits": {"max_body": 1}}},
    "a setting of the chart": {"settings": {"auth": {"database": "/x"}}},
    "a key in plain sight": {"settings": {"auth": {"keys": ["tt-x"]}}},
    "a profile that is none": {"settings": {"thrift": "most"}},
    "a truth value that is no word": {"settings": {"kv": {"heads": True}}},
    "too small": {"settings": {"limits": {"max_body_bytes": 12}}},
    "of the wrong type": {"replicas": "two"},
    "the latest tag": {"image": {"tag": "latest"}},
    "a size that is none": {"sharedMemory": "1 gigabyte"},
    "an engine that is none": {"engines": ["engine:8000"]},
}


@pytest.mark.parametrize("name", WRONG)
def test_helm_refuses(name: str) -> None:
    with pytest.raises(HelmError, match="don't meet the specifications of the schema"):
        template(WRONG[name])
