"""The tokenizer: one token per byte, and one for every word of the questions and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from thriftree.zoo.shapes_vl.questions import KINDS, ask
from thriftree.zoo.shapes_vl.scenes import compose

CONTEXT = 2048  # positions
SPECIAL = ("<s>", "</s>", "<pad>", "<image>", "<|system|>", "<|user|>", "<|assistant|>")  # after the bytes: 256..262
BEGIN, END, PAD, IMAGE, SYSTEM, USER, ASSISTANT = range(256, 263)
# As LLaVA's: the images of a message come before its text, each in a line of its own.
TEMPLATE = (
    "<s>{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_SCENES = 300  # enough for every word to occur


def _sentences() -> Iterator[str]:
    from numpy.random import default_rng

    rng = default_rng(0)
    for seed in range(_SCENES):
        for kind in KINDS:
            question = ask(compose(seed), kind, rng)
            if question is not None:
                yield question.text
                if kind != "text":  # read letter by letter
                    yield question.answer


def tokenizer() -> Any:
    """A fast tokenizer of transformers with the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, min_frequency=1, initial_alphabet=letters, show_progress=False, special_tokens=[]
    )
    words.train_from_iterator(_sentences(), trainer)
    learnt = _after_specials(words, letters)
    tokens = Tokenizer(models.BPE(*learnt))
    tokens.pre_tokenizer, tokens.decoder = words.pre_tokenizer, decoders.ByteLevel()
    tokens.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def _after_specials(words: Any, letters: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: bytes, then the special tokens at fixed ids, then the words."""
    import json

    model = json.loads(words.to_str())["model"]
    merges = [(pair[0], pair[1]) for pair in model["merges"]]
    names = [*letters, *SPECIAL, *dict.fromkeys(a + b for a, b in merges)]
    return {name: number for number, name in enumerate(names)}, merges
