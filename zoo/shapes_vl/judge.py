"""What a checkpoint answers in plain transformers: ``python -m thriftree.zoo.shapes_vl.judge FOLDER [COUNT]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from thriftree.zoo.shapes_vl.items import Item, held_out

_BATCH = 40


def answers(folder: Path, items: Sequence[Item]) -> list[str]:
    """Greedy answers of the checkpoint in `folder`, in float32."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    said: list[str] = []
    for start in range(0, len(items), _BATCH):
        some = items[start : start + _BATCH]
        texts = [processor.apply_chat_template(_talk(item), add_generation_prompt=True) for item in some]
        inputs = processor(images=[item.image for item in some], text=texts, padding=True, return_tensors="pt").to(
            device
        )
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(ids, skip_special_tokens=True)
    return said


def _talk(item: Item) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.question}]}]


def shares(items: Sequence[Item], said: Sequence[str]) -> dict[str, float]:
    """Share of right answers: of all, of each kind of question, of each style of scene."""
    right = [item.right(answer) for item, answer in zip(items, said, strict=True)]
    names: list[Callable[[Item], str]] = [lambda item: "all", lambda item: item.kind, lambda item: item.style]
    found: dict[str, list[bool]] = {}
    for name in names:
        for item, good in zip(items, right, strict=True):
            found.setdefault(name(item), []).append(good)
    return {key: sum(hits) / len(hits) for key, hits in found.items()}


if __name__ == "__main__":
    from thriftree.zoo.cpu_wheels import repair

    repair()
    questions = held_out(int(sys.argv[2]) if len(sys.argv) > 2 else 1120)
    for group, share in shares(questions, answers(Path(sys.argv[1]), questions)).items():
        print(f"{group:14} {share:.1%}")
