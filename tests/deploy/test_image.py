"""The Dockerfile: linted, consistent with the project, and (slow) its steps run for real."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy import container, dockerfile

FILE = container.ROOT / "Dockerfile"
PROJECT = tomllib.loads((container.ROOT / "pyproject.toml").read_text())
STAGES = {engine: dockerfile.parse(FILE, {"ENGINE": engine}) for engine in ("cpu", "cuda")}
both = pytest.mark.parametrize("engine", ["cpu", "cuda"])


def final(engine: str = "cpu") -> dockerfile.Stage:
    return STAGES[engine][""]


def test_hadolint_finds_nothing() -> None:
    tool = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([tool, "--no-color", FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@both
def test_every_stage_has_a_base(engine: str) -> None:
    for stage in STAGES[engine].values():
        oldest = dockerfile.lineage(STAGES[engine], stage.name)[0]
        assert oldest.base == "python:3.11-slim-bookworm"
    assert [stage.name for stage in dockerfile.lineage(STAGES["cuda"], "")][:2] == ["runtime-cpu", "runtime-cuda"]


@both
def test_the_user_is_nobody_special(engine: str) -> None:
    (user,) = final(engine).all("USER")
    assert user == "10001:10001"
    created = [text for text in STAGES[engine]["runtime-cpu"].all("RUN") if "useradd" in text]
    assert "--uid 10001 --gid 10001" in created[0]


@both
def test_nothing_of_the_build_is_left(engine: str) -> None:
    stage = final(engine)
    assert not stage.all("RUN")
    assert sorted(stage.all("COPY")) == ["--from=build /models /models", "--from=build /venv /venv"]


def test_the_written_folders_are_volumes_of_the_user() -> None:
    (volumes,) = final().all("VOLUME")
    assert volumes == '["/home/thriftree/.cache", "/data"]'
    owned = next(text for text in STAGES["cpu"]["runtime-cpu"].all("RUN") if "chown" in text)
    assert owned.endswith("chown thriftree:thriftree /home/thriftree/.cache /data")
    environment = container.environment(STAGES["cpu"], "")
    assert environment["TRITON_CACHE_DIR"].startswith("/home/thriftree/.cache/")


def test_the_health_check_asks_for_life_not_readiness() -> None:
    assert "http://127.0.0.1:8000/health" in container.health_check(final())[-1]
    assert final().all("EXPOSE") == ["8000"]


def test_labels_carry_the_project_s_version() -> None:
    (labels,) = final().all("LABEL")
    names = re.findall(r"org\.opencontainers\.image\.(\w+)=", labels)
    assert names == ["title", "description", "version", "revision", "licenses"]
    assert f"VERSION={PROJECT['project']['version']}" in final().all("ARG")


def test_the_pinned_torch_is_the_one_of_the_makefile() -> None:
    pin = re.compile(r"torch==[\d.]+")
    assert set(pin.findall(FILE.read_text())) == set(pin.findall((container.ROOT / "Makefile").read_text()))


def test_the_context_holds_what_an_installation_needs() -> None:
    kept = {line[1:] for line in (container.ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    rooms = set(PROJECT["tool"]["setuptools"]["package-dir"].values())
    assert kept == rooms | {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}


@both
def test_requirements_come_from_the_project(engine: str, tmp_path: Path) -> None:
    """The step that writes the list, run alone: it would hide behind a cached layer."""
    text = next(text for text in STAGES[engine]["build"].all("RUN") if "tomllib" in text)
    writes = text.partition("&& pip")[0].replace("/tmp/requirements.txt", str(tmp_path / "list"))
    writes = writes.replace("python", sys.executable, 1)
    subprocess.run(["sh", "-euc", writes], cwd=container.ROOT, env={"ENGINE": engine}, check=True)
    extras = PROJECT["project"]["optional-dependencies"]
    assert (tmp_path / "list").read_text().split("\n")[:-1] == [
        *PROJECT["project"]["dependencies"], *extras[engine], *extras["model"], *extras["redis"],
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(container.missing() is not None, reason=f"no stand-in for a container: {container.missing()}")
def test_the_image_builds_and_serves_from_a_read_only_root(tmp_path: Path) -> None:
    """Minutes: every step of the CPU image; then user 10001, no privileges, no network, three writable folders."""
    environment = container.environment(STAGES["cpu"], "") | {"HEALTH": shlex.join(container.health_check(final()))}
    environment["THRIFTREE_AUTH__DATABASE"] = "/data/keys.db"
    command = shlex.join(container.command_line(final()))
    done = container.run(tmp_path, Path(__file__).parent / "inside.sh", environment, command)
    (tmp_path / "disk.img").unlink(missing_ok=True)
    print(done.stdout[done.stdout.rfind("healthy after") :])  # sizes and memory, for `pytest -s`
    assert done.returncode == 0, done.stdout[-6000:]
    for said in (r"healthy after \d+ s", r"ready after \d+ s", '"usage"', "stopped with 0"):
        assert re.search(said, done.stdout), f"{said}\n{done.stdout[-6000:]}"
