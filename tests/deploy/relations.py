"""Checks of one rendering: between its objects, and between them and the server. Each yields complaints."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tests.deploy import container, dockerfile
from tests.deploy.helm_cli import only, selectors
from thriftree.server import settings
from thriftree.server.middleware.routes import OPEN

Objects = list[dict[str, Any]]
Complaints = Iterator[str]
_CRDS = {
    made["properties"]["kind"]["const"]: made
    for made in (json.loads(file.read_text()) for file in (Path(__file__).parent / "crds").glob("*.json"))
}
_IMAGE = dockerfile.parse(container.ROOT / "Dockerfile", {"ENGINE": "cpu"})[""]


def pod(objects: Objects) -> dict[str, Any]:
    template: dict[str, Any] = only(objects, "Deployment")["spec"]["template"]
    return template


def server(objects: Objects) -> dict[str, Any]:
    (found,) = pod(objects)["spec"]["containers"]
    return dict(found)


def kubernetes_takes_them(objects: Objects) -> Complaints:
    for made in objects:
        try:
            if made["kind"] in _CRDS:
                jsonschema.validate(made, _CRDS[made["kind"]])
            else:
                for version in ("1.27", "1.37"):
                    kubernetes_validate.validate(made, version, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            yield f"{made['kind']}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"no such resource: {made['apiVersion']} {made['kind']}"


def names_are_unique(objects: Objects) -> Complaints:
    names = [(made["kind"], made["metadata"]["name"]) for made in objects]
    yield from (f"twice: {name}" for name in set(names) if names.count(name) > 1)
    yield from (f"too long: {name}" for _, name in names if len(name) > 63)


def selectors_find_the_pods(objects: Objects) -> Complaints:
    labels = pod(objects)["metadata"]["labels"]
    found = list(selectors(objects))
    for kind, selector in found:
        if not selector.items() <= labels.items():
            yield f"{kind} selects {selector}"
    kinds = {"Service", "Deployment"} | {"NetworkPolicy", "PodDisruptionBudget"} & {made["kind"] for made in objects}
    if {kind for kind, _ in found} != kinds:
        yield f"selectors of {sorted(kind for kind, _ in found)}"
    for test in (made for made in objects if made["kind"] == "Pod"):
        if dict(found)["Service"].items() <= test["metadata"]["labels"].items():
            yield "the service would send requests to the test's pod"


def probes_ask_open_routes(objects: Objects) -> Complaints:
    wanted = {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    ports = {port["name"] for port in server(objects)["ports"]}
    for name, path in wanted.items():
        asked = server(objects)[name]["httpGet"]
        if asked["path"] != path or path not in OPEN or asked["port"] not in ports:
            yield f"{name} asks {asked}"
    start = server(objects)["startupProbe"]
    if start["periodSeconds"] * start["failureThreshold"] < 300:
        yield "a start of less than five minutes is killed"


def the_drain_has_its_time(objects: Objects) -> Complaints:
    sleep = server(objects)["lifecycle"]["preStop"]["exec"]["command"]
    needed = loaded(objects)[0].drain_timeout + int(sleep[1])
    if pod(objects)["spec"]["terminationGracePeriodSeconds"] < needed + 5:
        yield f"killed after {pod(objects)['spec']['terminationGracePeriodSeconds']} s; {needed} s are needed"


def the_server_takes_its_settings(objects: Objects) -> Complaints:
    known = {"THRIFTREE_" + "__".join(path).upper() for path, _ in settings.leaves()}
    for entry in server(objects)["env"]:
        if entry["name"].startswith("THRIFTREE_") and entry["name"] not in known:
            yield f"no setting: {entry['name']}"
    try:
        loaded(objects)
    except settings.StartError as error:
        yield str(error)


def loaded(objects: Objects) -> tuple[settings.Settings, list[str]]:
    """The rendered arguments and settings file, read by the server's own loader; what is left is vLLM's."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(only(objects, "ConfigMap")["data"]["thriftree.yaml"])
        file.flush()
        arguments = [word.replace("/etc/thriftree/thriftree.yaml", file.name) for word in server(objects)["args"]]
        return settings.load(arguments)


def volumes_are_there(objects: Objects) -> Complaints:
    volumes = {volume["name"]: volume for volume in pod(objects)["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in server(objects)["volumeMounts"]}
    yield from (f"no volume {mount['name']}" for mount in mounts.values() if mount["name"] not in volumes)
    for path in (*json.loads(_IMAGE.all("VOLUME")[0]), "/tmp", "/dev/shm"):
        if path not in mounts or mounts[path].get("readOnly"):
            yield f"{path} cannot be written"
    claims = {made["metadata"]["name"] for made in objects if made["kind"] == "PersistentVolumeClaim"}
    used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    if not claims <= used:
        yield f"claims that nobody mounts: {claims - used}"
    for entry in server(objects)["env"]:
        folder = str(Path(entry.get("value", "")).parent)
        if entry["name"].endswith(("FILE", "DATABASE", "SNAPSHOT")) and folder.startswith("/") and folder not in mounts:
            yield f"{entry['name']}: nothing is mounted at {folder}"


def nobody_is_root(objects: Objects) -> Complaints:
    uid, _, gid = _IMAGE.all("USER")[0].partition(":")
    pods = [pod(objects)["spec"], *(made["spec"] for made in objects if made["kind"] == "Pod")]
    for spec in pods:
        context = spec["securityContext"]
        if not context["runAsNonRoot"] or (context["runAsUser"], context["runAsGroup"]) != (int(uid), int(gid)):
            yield f"runs as {context}"
        if spec["automountServiceAccountToken"] or context["seccompProfile"] != {"type": "RuntimeDefault"}:
            yield "token or system calls are open"
        own = spec["containers"][0]["securityContext"]
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        if own != wanted:
            yield f"container: {own}"
        if spec.get("enableServiceLinks", True) and spec is pods[0]:
            yield "services of the namespace would set THRIFTREE_* and VLLM_* variables"
        if not spec["containers"][0]["resources"]["limits"].get("memory"):
            yield "no limit of memory"


def images_have_a_name(objects: Objects) -> Complaints:
    images = [server(objects)["image"], *(m["spec"]["containers"][0]["image"] for m in objects if m["kind"] == "Pod")]
    for image in images:
        name = image.rpartition("/")[2]
        if ":" not in name or name.endswith((":latest", ":")) or image != images[0]:
            yield f"image {image}"


def the_network_is_closed(objects: Objects) -> Complaints:
    """Both directions are policed; in: the server's port only, from named peers; out: never everything at once."""
    spec = only(objects, "NetworkPolicy")["spec"]
    if sorted(spec["policyTypes"]) != ["Egress", "Ingress"]:
        yield f"policed: {spec['policyTypes']}"
    ports = {port["name"] for port in server(objects)["ports"]}
    for rule in spec["ingress"]:
        if {port["port"] for port in rule.get("ports", ())} != ports or not all(rule.get("from") or [{}]):
            yield f"comes in: {rule}"
    yield from (f"goes out: {rule}" for rule in spec["egress"] if not rule.get("ports") and not rule.get("to"))


def the_service_leads_to_the_server(objects: Objects) -> Complaints:
    ports = {port["name"]: port["containerPort"] for port in server(objects)["ports"]}
    asked = [word for word in server(objects)["args"] if word.startswith("--port=")]
    if asked != [f"--port={ports.get('http')}"] or "--host=0.0.0.0" not in server(objects)["args"]:
        yield f"listens on {asked}, says {ports}"
    for port in only(objects, "Service")["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"service port {port}"
    for made in (made for made in objects if made["kind"] == "ServiceMonitor"):
        if made["spec"]["endpoints"][0]["port"] != "http" or made["spec"]["endpoints"][0]["path"] not in OPEN:
            yield f"scrapes {made['spec']['endpoints']}"


CHECKS: Mapping[str, Callable[[Objects], Complaints]] = {
    check.__name__: check
    for check in (
        kubernetes_takes_them, names_are_unique, selectors_find_the_pods, probes_ask_open_routes,
        the_drain_has_its_time, the_server_takes_its_settings, volumes_are_there, nobody_is_root, images_have_a_name,
        the_network_is_closed, the_service_leads_to_the_server,
    )
}  # fmt: skip


def complaints(objects: Objects) -> list[str]:
    """Of all checks; a check that does not find what it looks at complains too."""
    found = []
    for name, check in CHECKS.items():
        try:
            found += [f"{name}: {said}" for said in check(objects)]
        except (KeyError, IndexError, ValueError) as error:
            found.append(f"{name}: {error!r}")
    return found
