"""The chart, rendered by the real helm with several sets of values; and broken on purpose, which must be noticed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from helm import generate
from tests.deploy import helm_cli, relations
from tests.deploy.chart_values import EVERYTHING, GATEWAY, GPU, MONITORED, SETS
from tests.deploy.helm_cli import CHART, HelmError, only, template
from thriftree.server import vllm_args
from thriftree.server.metrics import Metrics
from thriftree.server.settings import leaves


@pytest.fixture(scope="module", params=SETS)
def rendered(request: pytest.FixtureRequest) -> relations.Objects:
    return template(SETS[request.param])


@pytest.fixture(scope="module")
def everything() -> relations.Objects:
    return template(EVERYTHING)


@pytest.mark.parametrize("check", relations.CHECKS)
def test_relations(rendered: relations.Objects, check: str) -> None:
    assert list(relations.CHECKS[check](rendered)) == []


@pytest.mark.parametrize("name", SETS)
def test_no_key_is_said_twice(name: str) -> None:
    text = helm_cli.run("template", "one", values=SETS[name])
    rules = YamlLintConfig("rules: {key-duplicates: enable, anchors: enable}")
    assert list(linter.run(text, rules)) == []


def test_plain_files_are_tidy() -> None:
    rules = YamlLintConfig("{extends: default, rules: {line-length: {max: 120}, document-start: disable, "
                           "braces: {max-spaces-inside: 0}, comments: {min-spaces-from-content: 1}}}")  # fmt: skip
    for file in (CHART / "Chart.yaml", CHART / "values.yaml", CHART / "files" / "prometheus-adapter.yaml"):
        assert [str(problem) for problem in linter.run(file.read_text(), rules)] == [], file


def test_helm_lint() -> None:
    assert "0 chart(s) failed" in helm_cli.run("lint", "--strict", values={})


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == project["version"]


def test_a_package_holds_the_files(tmp_path: Path) -> None:
    subprocess.run([helm_cli.helm(), "package", CHART, "-d", tmp_path], check=True, capture_output=True)
    (package,) = tmp_path.glob("*.tgz")
    assert template(EVERYTHING, package) == template(EVERYTHING)


def test_default_asks_for_keys_in_a_volume() -> None:
    objects = template()
    environment = {entry["name"]: entry.get("value") for entry in relations.server(objects)["env"]}
    assert environment["THRIFTREE_AUTH__DATABASE"] == "/data/keys.db"
    assert only(objects, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    claim = only(objects, "PersistentVolumeClaim", "one-thriftree-keys")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_gpu() -> None:
    objects = template(GPU)
    server = relations.server(objects)
    assert server["image"] == "thriftree:0.1.0-cuda"
    assert relations.loaded(objects)[0].thrift == "off"
    assert server["args"][0] == "org/model-8b" and "--tensor-parallel-size=2" in server["args"]
    assert server["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    shm = next(v for v in relations.pod(objects)["spec"]["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert (
        "--tensor-parallel-size=2"
        not in relations.server(template({"gpu": {"count": 1}, "settings": {"thrift": "off"}}))["args"]
    )


def test_a_gateway() -> None:
    objects = template(GATEWAY)
    settings, rest = relations.loaded(objects)
    assert settings.engine == GATEWAY["engines"]
    assert rest == ["--host=0.0.0.0", "--port=8000"]
    environment = {entry["name"]: entry for entry in relations.server(objects)["env"]}
    assert environment["THRIFTREE_AUTH__KEYS_FILE"]["value"] == "/etc/thriftree-keys/keys.yaml"
    assert environment["THRIFTREE_QUOTAS__REDIS"]["valueFrom"]["secretKeyRef"] == {"name": "quotas", "key": "url"}
    assert environment["THRIFTREE_REMOTE__KEY"]["valueFrom"]["secretKeyRef"] == {"name": "engines", "key": "key"}
    deployment = only(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 3 and deployment["strategy"]["type"] == "RollingUpdate"


def test_settings_arrive_as_they_were_said(everything: relations.Objects) -> None:
    """Helm writes large numbers as 1e+06 when it may, and YAML reads a bare off as false."""
    settings, _ = relations.loaded(everything)
    assert settings.thrift == "off"
    assert settings.limits.max_body_bytes == 1_000_000 and settings.admission.max_queue_tokens == 2_000_000
    assert settings.vllm == {"max-model-len": 1_000_000, "trust-remote-code": False}
    assert settings.drain_timeout == 120


def test_what_the_chart_sets_cannot_be_set_twice(rendered: relations.Objects) -> None:
    """A variable or a flag would win over the same setting in `settings` unseen: the schema refuses it there."""
    names = {"_".join(path): ".".join(path) for path, _ in leaves()}
    variables = {entry["name"].removeprefix("THRIFTREE_").lower() for entry in relations.server(rendered)["env"]}
    flags = {word.partition("=")[0].lstrip("-") for word in relations.server(rendered)["args"]}
    said = {name.replace("__", "_") for name in variables} | {name.replace("-", "_") for name in flags}
    found = {names[name] for name in said & names.keys()}
    assert "drain_timeout" in found and found <= generate.OWNED.keys()


def test_changed_settings_start_new_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        return str(relations.pod(template(values))["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}) != checksum({"settings": {"thrift": "exact"}})
    assert checksum({}) == hashlib.sha256(b"{}").hexdigest()


def test_replicas_are_the_autoscaler_s(everything: relations.Objects) -> None:
    assert "replicas" not in only(everything, "Deployment")["spec"]
    spec = only(everything, "HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one-thriftree"}


def test_the_autoscaler_s_metrics_are_made(everything: relations.Objects) -> None:
    """What it asks for, prometheus-adapter makes, of series that the server has."""
    spec = only(everything, "HorizontalPodAutoscaler")["spec"]
    asked = {metric["pods"]["metric"]["name"] for metric in spec["metrics"]}
    rules = yaml.safe_load((CHART / "files" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == asked
    families = {family.name: family for family in Metrics().registry.collect()}
    for rule in rules:
        series, labels = re.fullmatch(r"(\w+)\{(.*)\}", rule["seriesQuery"]).groups()  # type: ignore[union-attr]
        assert series.removesuffix("_total") in families
        assert {"namespace", "pod"} <= set(re.findall(r"(\w+)!?=", labels))
        assert "<<.Series>>{<<.LabelMatchers>>" in rule["metricsQuery"]


def test_rules_and_dashboards_are_shipped(everything: relations.Objects) -> None:
    source = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    assert only(everything, "PrometheusRule")["spec"] == source
    files = sorted((CHART / "files" / "dashboards").glob("*.json"))
    assert files
    for file in files:
        made = only(everything, "ConfigMap", f"one-thriftree-{file.stem}")
        assert made["data"] == {file.name: file.read_text().rstrip("\n")}
        assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert made["metadata"]["annotations"] == {"grafana_folder": "LLM"}


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "no keys": ("keys: there are none", {"keys": {"database": {"enabled": False}}}),
    "two replicas": ("its volume holds one replica", {"replicas": 2}),
    "one volume for many": (
        "ReadWriteMany",
        {"replicas": 2, "cache": {"persistent": True}, "settings": {"auth": {"open": True}},
         "keys": {"database": {"enabled": False}}},
    ),
    "no store": ("store.name and remoteKey", {"keys": {"externalSecret": {"enabled": True}}}),
    "trees on a GPU": ("settings.thrift: off", {"gpu": {"count": 1}, "settings": {"thrift": "exact"}}),
    "gateway with a model": ("no engine of its own", {**GATEWAY, "model": "x"}),
    "gateway without a way out": ("networkPolicy.egress", {**GATEWAY, "networkPolicy": {}}),
    "scraping without a key": ("/metrics needs a key", {"serviceMonitor": {"enabled": True}}),
    "alerts that see nothing": ("job with thriftree", {**MONITORED, "fullnameOverride": "llm"}),
    "an ingress for nobody": ("name at least one host", {"ingress": {"enabled": True}}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    reason, values = REFUSED[name]
    with pytest.raises(HelmError, match=re.escape(reason)):
        template(values)


GRACE = "add .Values.preStopSeconds .Values.drainSeconds .Values.stopSeconds"
LIFE = "livenessProbe:\n  httpGet:\n    path: "
#: name: file, what it says, what is put in its place
MUTANTS = {
    "another selector": ("service.yaml", '{{- include "thriftree.selector" . | nindent 4 }}', "app: thriftree"),
    "ready as life": ("_container.tpl", f"{LIFE}/health", f"{LIFE}/ready"),
    "a closed route": ("_container.tpl", "path: /ready", "path: /healthz"),
    "impatient with a start": ("_container.tpl", "failureThreshold: 60", "failureThreshold: 6"),
    "no time to drain": ("_pod.tpl", GRACE, "add .Values.preStopSeconds .Values.stopSeconds"),
    "preStop not counted": ("_pod.tpl", GRACE, "add .Values.drainSeconds 5"),
    "a misspelt setting": ("_container.tpl", "THRIFTREE_QUOTAS__REDIS", "THRIFTREE_QUOTA_REDIS"),
    "a wrong port": ("_container.tpl", "--port=8000", "--port=8080"),
    "loopback": ("_container.tpl", "--host=0.0.0.0", "--host=127.0.0.1"),
    "a writable root": ("_container.tpl", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    "variables of services": ("_pod.tpl", "enableServiceLinks: false", "enableServiceLinks: true"),
    "another user": ("_pod.tpl", "runAsUser: 10001", "runAsUser: 1000"),
    "no folder for the cache": ("_container.tpl", "/home/thriftree/.cache", "/root/.cache"),
    "keys elsewhere": ("_container.tpl", "mountPath: /etc/thriftree-keys", "mountPath: /etc/keys"),
    "a claim of another name": ("volumes.yaml", "-cache", "-compiled"),
    "an open port": ("networkpolicy.yaml", "- port: http\n          protocol: TCP", "- protocol: TCP"),
    "nothing out is policed": ("networkpolicy.yaml", "[Ingress, Egress]", "[Ingress]"),
    "a field that is none": ("hpa.yaml", "minReplicas:", "minimumReplicas:"),
    "a field of no operator": ("monitoring.yaml", "interval:", "intervall:"),
    "an old API": ("pdb.yaml", "policy/v1", "policy/v1beta1"),
    "a latest tag": ("_helpers.tpl", "{{ .Values.image.repository }}@{{ .Values.image.digest }}", "x:latest"),
    "the test gets requests": ("tests/ready.yaml", "component: test", "component: server"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_chart_is_noticed(name: str, tmp_path: Path) -> None:
    file, right, wrong = MUTANTS[name]
    chart = tmp_path / "thriftree"
    shutil.copytree(CHART, chart)
    text = (chart / "templates" / file).read_text()
    assert right in text
    (chart / "templates" / file).write_text(text.replace(right, wrong, 1))
    assert relations.complaints(template(EVERYTHING, chart)) != []


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_vllm_knows_the_other_flags(name: str) -> None:
    """Seconds: vLLM's own parser."""
    _, rest = relations.loaded(template(SETS[name]))
    vllm_args.make_parser().parse_args(rest)
