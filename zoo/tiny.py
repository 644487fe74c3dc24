"""Tiny random models for engine tests: odd shapes in a second, the same weights on every machine.

Weights are wide (logits several units apart), so greedy answers vary and are not decided by rounding. The tokenizer is
one token per byte, with the ChatML marks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thriftree.zoo import cache

_RECIPE = "2"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VOCAB = 256 + 32  # bytes and marks, rounded up
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

#: Name -> (transformers config class, what differs from the common shape).
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("LlamaConfig", {"num_key_value_heads": 4}),  # GQA 1:1
    "llama-gqa": ("LlamaConfig", {"num_key_value_heads": 1}),
    "mistral-window": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 32, "head_dim": 32}),
    "qwen2-bias": ("Qwen2Config", {"num_key_value_heads": 2}),  # biases on q, k and v
}


def ensure(name: str) -> Path:
    """The folder of tiny model `name` (a key of `SHAPES`), built in the cache if it is not there."""
    target = cache.root() / "models" / f"tiny-{name}"
    with cache.lock(target):
        stamp = target / cache.STAMP
        if not (stamp.exists() and stamp.read_text() == _RECIPE):
            with cache.appear(target) as out:
                _build(name, out)
                (out / cache.STAMP).write_text(_RECIPE)
    return target


def _build(name: str, out: Path) -> None:
    import torch
    import transformers

    family, shape = SHAPES[name]
    config = getattr(transformers, family)(
        vocab_size=_VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=258,
        pad_token_id=256,
        **shape,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            wide = 0.3 if "norm" not in key else 0.05
            noise = torch.randn(weight.shape, generator=generator) * wide
            weight.copy_(1 + noise if "norm" in key else noise)
    model.save_pretrained(out)
    _tokenizer().save_pretrained(out)


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in _SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
    )
    fast.chat_template = _TEMPLATE
    return fast
