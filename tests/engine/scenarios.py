"""What a server meets, as lists of requests on the default model. Each runs on plain vLLM and on ours."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from .engines import Ask

QUESTIONS = (
    "Repeat the word tree ten times.",
    "Count from one to twenty in words.",
    "What is gravity? Answer in two sentences.",
    "Write a Python function that adds two numbers, then one that subtracts them, then one that multiplies them.",
    "Translate into French: the cat sits on the mat, the dog sits on the mat, the bird sits on the mat.",
    "List the days of the week, then list them again in reverse order.",
    "Tom has 3 apples and buys 4 more bags with 5 apples each. How many apples does Tom have? Think step by step.",
    "Summarise: The river floods every spring. The farmers wait for the flood. After the flood the farmers plant rice.",
)

Scenario = Callable[[Any], list[Ask]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(make: Scenario) -> Scenario:
    SCENARIOS[make.__name__] = make
    return make


def chat(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def asks(tokenizer: Any, *, number: int = 4, stagger: int = 0, **params: Any) -> list[Ask]:
    """`number` chat requests; parameters may be callables of the request's index."""
    out = []
    for i in range(number):
        given = {key: value(i) if callable(value) else value for key, value in params.items()}
        settings = {"temperature": 0.0, "max_tokens": 24, **given}
        prompt = chat(tokenizer, QUESTIONS[i % len(QUESTIONS)])
        out.append(Ask(prompt, SamplingParams(**settings), arrives=i * stagger))
    return out


@scenario
def greedy(tok: Any) -> list[Ask]:
    return asks(tok, number=8)


@scenario
def one_at_a_time(tok: Any) -> list[Ask]:
    return asks(tok, number=1, max_tokens=64)


@scenario
def arrivals_between_steps(tok: Any) -> list[Ask]:
    return asks(tok, number=8, stagger=5)


@scenario
def logprobs(tok: Any) -> list[Ask]:
    return asks(tok, logprobs=lambda i: (None, 0, 3)[i % 3])


@scenario
def prompt_logprobs(tok: Any) -> list[Ask]:
    return asks(tok, number=3, prompt_logprobs=2, max_tokens=24)


@scenario
def seeded(tok: Any) -> list[Ask]:
    return asks(tok, temperature=0.8, seed=lambda i: 100 + i)


@scenario
def seeded_top_p_top_k(tok: Any) -> list[Ask]:
    return asks(tok, temperature=1.0, top_p=0.9, top_k=40, seed=lambda i: 7 * i)


@scenario
def seeded_with_logprobs(tok: Any) -> list[Ask]:
    return asks(tok, temperature=0.7, seed=lambda i: i, logprobs=2)


@scenario
def greedy_and_seeded_mixed(tok: Any) -> list[Ask]:
    return asks(tok, temperature=lambda i: 0.0 if i % 2 else 0.9, seed=lambda i: i, stagger=3)


@scenario
def penalties(tok: Any) -> list[Ask]:
    return asks(tok, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.2)


@scenario
def bad_words(tok: Any) -> list[Ask]:
    return asks(tok, bad_words=[" tree", " the"])


@scenario
def allowed_token_ids(tok: Any) -> list[Ask]:
    few = sorted({t for q in QUESTIONS for t in tok.encode(q)} | {tok.eos_token_id})
    return asks(tok, allowed_token_ids=lambda i: few if i % 2 else None)


@scenario
def min_tokens(tok: Any) -> list[Ask]:
    return asks(tok, min_tokens=24, max_tokens=40)


@scenario
def ends_of_sequence(tok: Any) -> list[Ask]:
    return asks(tok, number=8, max_tokens=120)


@scenario
def stop_strings(tok: Any) -> list[Ask]:
    return asks(tok, stop=lambda i: [[" the", "\n\n"], [". "], ["ree tr"]][i % 3], max_tokens=64)


@scenario
def stop_token_ids(tok: Any) -> list[Ask]:
    return asks(tok, stop_token_ids=tok.encode("."), max_tokens=64)


@scenario
def one_and_two_tokens(tok: Any) -> list[Ask]:
    return asks(tok, max_tokens=lambda i: 1 + i % 2)


@scenario
def three_tokens(tok: Any) -> list[Ask]:
    return asks(tok, max_tokens=3)


@scenario
def to_the_context_limit(tok: Any) -> list[Ask]:
    prompt = (chat(tok, QUESTIONS[0]) * 40)[:990]
    params = SamplingParams(temperature=0.0, max_tokens=4000, ignore_eos=True)
    return [Ask(prompt, params), Ask(prompt[:1000], params), Ask((prompt * 2)[:1023], params)]


@scenario
def some_opt_out(tok: Any) -> list[Ask]:
    off = {"thriftree": {"speculation": "off"}}
    return asks(tok, extra_args=lambda i: off if i % 2 else None, stagger=2)


@scenario
def each_its_method(tok: Any) -> list[Ask]:
    methods = ("auto", "token_recycling", "trie_lookahead", "suffix")
    return asks(
        tok,
        number=8,
        extra_args=lambda i: {"thriftree": {"speculation": {"method": methods[i % 4], "max_nodes": 2 + i}}},
    )


@scenario
def choices(tok: Any) -> list[Ask]:
    return asks(tok, number=3, n=3, temperature=0.8, seed=lambda i: i)


@scenario
def min_p_and_logit_bias(tok: Any) -> list[Ask]:
    return asks(
        tok,
        temperature=lambda i: 0.7 if i % 3 == 0 else 0.0,
        seed=lambda i: i,
        min_p=lambda i: 0.1 if i % 3 == 0 else 0.0,
        logit_bias=lambda i: {tok.encode(" the")[0]: 4.0} if i % 3 == 1 else None,
    )


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name", "age"],
}


@scenario
def json_grammar(tok: Any) -> list[Ask]:
    return asks(tok, number=4, max_tokens=48, structured_outputs=lambda i: StructuredOutputsParams(json=SCHEMA))


@scenario
def regex_grammar(tok: Any) -> list[Ask]:
    return asks(tok, number=3, structured_outputs=lambda i: StructuredOutputsParams(regex=r"(yes|no)( (yes|no)){9}"))


@scenario
def grammar_beside_free_text(tok: Any) -> list[Ask]:
    free = asks(tok, number=6, stagger=2, temperature=0.6, seed=lambda i: i)
    bound = asks(tok, number=6, stagger=3, structured_outputs=lambda i: StructuredOutputsParams(json=SCHEMA))
    return [*free[:3], *bound[:3]]


@scenario
def same_prompts_again(tok: Any) -> list[Ask]:
    """Prefix-cache hits, on blocks that the tree path wrote: prompts are earlier prompts with their answers."""
    first = asks(tok, number=4, max_tokens=80, ignore_eos=True)
    return [*first, *(Ask(ask.prompt, ask.params, arrives=100) for ask in first)]


@scenario
def prompts_of_block_length(tok: Any) -> list[Ask]:
    """A full block plus one token: after the hit, the last prompt token is computed alone."""
    long = chat(tok, " ".join(QUESTIONS)) * 4
    params = SamplingParams(temperature=0.0, max_tokens=24)
    return [Ask(long[:n], params, arrives=at) for at, n in ((0, 257), (60, 257), (120, 129), (180, 128), (240, 256))]


@scenario
def many(tok: Any) -> list[Ask]:
    rng = random.Random(4)
    out = []
    for i in range(24):
        prompt = chat(tok, " ".join(rng.sample(QUESTIONS, rng.randint(1, 3))))
        params = SamplingParams(temperature=rng.choice((0.0, 0.0, 0.7)), seed=i, max_tokens=rng.randint(1, 40))
        out.append(Ask(prompt, params, arrives=rng.randint(0, 60)))
    return out


def follow_up(tokenizer: Any, first: Sequence[Ask], answers: Sequence[Any]) -> list[Ask]:
    """A second turn over the answers of the first: hits on blocks that hold accepted paths."""
    more = tokenizer.encode("<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n")
    return [
        Ask([*ask.prompt, *answer.tokens[0], *more], ask.params) for ask, answer in zip(first, answers, strict=True)
    ]
