"""Beside a CPU torch, torchvision's Python half must import in every process, or no vision model of vLLM does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

MODULES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_vision_models_import_in_a_fresh_process() -> None:
    lines = [f"import vllm.model_executor.models.{name}" for name in MODULES]
    said = fresh("\n".join([*lines, "import torchvision", "print('version', torchvision.__version__)"]))
    assert "version 0." in said


def test_vllm_inspects_them_in_its_subprocess(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """vLLM looks at a model's class in a process of its own, unless it remembers what it saw there."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    from vllm.model_executor.models.registry import _LazyRegisteredModel

    classes = {"llava": "LlavaForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
    for module, name in classes.items():
        found = _LazyRegisteredModel(f"vllm.model_executor.models.{module}", name)
        assert found.inspect_model_cls().supports_multimodal, name
