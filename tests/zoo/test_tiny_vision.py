"""Tiny vision models: the same bytes everywhere, and transformers takes them whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from thriftree.zoo import cache, tiny_vision


@pytest.mark.parametrize("name", tiny_vision.FAMILIES)
def test_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    first = tiny_vision.ensure(name)
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    monkeypatch.delenv("THRIFTREE_MODELS", raising=False)
    folder = tiny_vision.ensure(name)
    assert folder != first
    files = {file.name for file in folder.iterdir()}
    assert files == {file.name for file in first.iterdir()} >= {"tokenizer.json", "processor_config.json"}
    assert all((first / file).read_bytes() == (folder / file).read_bytes() for file in files)


@pytest.mark.parametrize("name", tiny_vision.FAMILIES)
def test_every_weight_finds_its_place(name: str) -> None:
    import transformers

    path = str(tiny_vision.ensure(name))
    loading = transformers.AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)[1]
    assert not any(loading.values()), loading
    processor = transformers.AutoProcessor.from_pretrained(path)
    question = [{"type": "text", "text": "so"}, {"type": "image"}, {"type": "text", "text": "what?"}]
    text = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    mark = tiny_vision.FAMILIES[name].image
    assert text == f"<|im_start|>user\nso{mark}what?<|im_end|>\n<|im_start|>assistant\n"
    assert len(processor.tokenizer.encode(mark)) == mark.count("<")


def test_an_unknown_name() -> None:
    with pytest.raises(cache.ZooError, match="llava-next"):
        tiny_vision.ensure("llava-2")
