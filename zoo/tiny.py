"""Tiny random models for engine tests: odd shapes in a second, the same weights on every machine.

Weights are wide (logits several units apart), so greedy answers vary and are not decided by rounding. The tokenizer is
one token per byte, with the ChatML marks; only `llama-bytes` has no tokens beyond it, so that its answers are text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thriftree.zoo import cache

_RECIPE = "4"
_VOCAB = 512
_POSITIONS = 2048
_WIDE = 0.2  # standard deviation of the weights; transformers' own 0.02 repeats one token for ever
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258: after the bytes
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """What differs from the common shape: four layers, hidden 128, four heads of 32."""

    config: str  # a config class of transformers
    summary: str
    kv_heads: int = 2
    more: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = _VOCAB


SHAPES = {
    "llama-gqa": Shape("LlamaConfig", "two query heads per KV head"),
    "llama-mha": Shape("LlamaConfig", "a KV head for every query head", kv_heads=4),
    "sliding": Shape("MistralConfig", "sliding window of 32", more={"sliding_window": 32, "head_dim": 32}),
    "bias": Shape("Qwen2Config", "biases on q, k and v"),
    "llama-bytes": Shape("LlamaConfig", "bytes and ChatML marks only: answers are text", vocabulary=259),
}


def ensure(name: str) -> Path:
    """The folder of tiny model `name` (a key of `SHAPES`), built in the cache if it is not there."""
    if name not in SHAPES:
        raise cache.ZooError(f"no tiny model {name!r}; there are {', '.join(SHAPES)}")
    return built(f"tiny-{name}", _RECIPE, lambda out: _build(name, SHAPES[name], out))


def built(folder: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """A model's folder in the cache; `build` fills it if what is there was made by another recipe.

    Raises:
        ZooError: it cannot be written.
    """
    target = cache.models() / folder
    try:
        with cache.lock(target):
            if not _ready(target, recipe):
                with cache.appear(target) as out:
                    build(out)
                    (out / cache.STAMP).write_text(recipe)
    except OSError as error:
        raise cache.ZooError(f"cannot build {folder} in {target}: {error.strerror or error}") from error
    return target


def _ready(target: Path, recipe: str) -> bool:
    stamp = target / cache.STAMP
    return stamp.exists() and stamp.read_text() == recipe


def _build(name: str, shape: Shape, out: Path) -> None:
    from thriftree.zoo.cpu_wheels import repair

    repair()
    import torch
    import transformers

    config = getattr(transformers, shape.config)(
        vocab_size=shape.vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=_POSITIONS,
        initializer_range=_WIDE,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=258,
        pad_token_id=256,
        **shape.more,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + noise * 0.05 if "norm" in key else noise * _WIDE)
    model.save_pretrained(out)
    tokenizer().save_pretrained(out)


def tokenizer(marks: Sequence[str] = (), template: str = _TEMPLATE) -> Any:
    """One token per byte, the ChatML marks, then `marks`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.add_special_tokens([AddedToken(mark, special=True) for mark in (*_SPECIAL, *marks)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytes_,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=_POSITIONS,
    )
    fast.chat_template = template
    return fast
