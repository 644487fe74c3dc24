"""What the proposer knows of one live request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thriftree.plugins.engine.contract_var import DEFAULT_TENANT, EXTRA_ARGS_KEY
from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.kv_cache.request import Terms, checked
from thriftree.plugins.refused import Refused
from thriftree.plugins.speculative import registry
from thriftree.plugins.vision import request as vision_request
from thriftree.plugins.vision.request import Terms as VisionTerms


@dataclass(slots=True)
class Drafting:
    """A request as the drafters see it."""

    request: str
    tenant: str
    method: str
    parameters: dict[str, Any] | None  # of the method, where the request sets its own
    prompt: list[int]
    drafts: bool  # False: learn from it, but propose nothing
    max_nodes: int
    max_tokens: int
    length: int  # tokens so far, prompt included
    emitted: int
    tail: tuple[int, int]  # the last two committed tokens

    def emit(self, tokens: Sequence[int]) -> None:
        self.length += len(tokens)
        self.emitted += len(tokens)
        self.tail = (tokens[-2] if len(tokens) > 1 else self.tail[1], tokens[-1])

    def room(self, max_model_len: int) -> int:
        """Levels that may still be accepted: the step adds one token after them, and both must fit."""
        return min(max_model_len - self.length - 1, self.max_tokens - self.emitted - 1)


def drafting_of(state: Any, options: SpeculationOptions, cap: int, fresh: int) -> Drafting:
    """Read a runner's cached request state (its last `fresh` output tokens are this step's) and its contract."""
    params = state.sampling_params
    contract = read_contract((params.extra_args or {}).get(EXTRA_ARGS_KEY, {})) if params is not None else {}
    asked = contract.get("speculation", "auto")
    chosen = asked if isinstance(asked, dict) else {}
    prompt = list(state.prompt_token_ids or ())
    outputs = state.output_token_ids[: len(state.output_token_ids) - fresh]
    known = [*prompt[-2:], *outputs[-2:]]
    return Drafting(
        request=state.req_id,
        tenant=str(contract.get("tenant", DEFAULT_TENANT)),
        method=str(chosen.get("method", options.method)),
        parameters={k: v for k, v in chosen.items() if k not in ("method", "max_nodes")} or None,
        prompt=prompt,
        drafts=asked != "off" and params is not None and bool(prompt) and not _excluded(params),
        max_nodes=min(int(chosen.get("max_nodes", cap)), cap),
        max_tokens=params.max_tokens if params is not None and params.max_tokens is not None else 1 << 30,
        length=len(prompt) + len(outputs),
        emitted=len(outputs),
        tail=(known[-2] if len(known) > 1 else -1, known[-1] if known else -1),
    )


def read_contract(given: Any) -> Any:
    """A contract as the gateway hands it over, or as text: a stock server's ``vllm_xargs`` allows no objects.

    Raises:
        ValueError: text that is neither 'auto' nor 'off' nor JSON.
    """
    if not isinstance(given, str):
        return given
    if given == "off":
        return {"speculation": "off", "kv": "off"}
    if given == "auto":
        return {"speculation": "auto"}
    try:
        return json.loads(given)
    except ValueError:
        raise ValueError(f"thriftree must be 'auto', 'off' or a JSON object, not {given!r}") from None


def check_contract(given: Any, terms: Terms | None = None, vision: VisionTerms | None = None) -> None:
    """What a client of a stock server may put into ``vllm_xargs`` under our key.

    Args:
        terms: what the engine grants of KV compression; None: nothing.
        vision: the same of visual-token pruning, whose late layers are asked for here.

    Raises:
        ValueError: the message names the field.
    """
    contract = read_contract(given)
    if not isinstance(contract, Mapping):
        raise ValueError("thriftree must be 'auto', 'off' or an object such as {'speculation': 'off'}")
    unknown = contract.keys() - {"speculation", "kv", "late", "tenant"}
    if unknown:
        raise ValueError(f"thriftree has no field {', '.join(sorted(map(str, unknown)))}")
    if "kv" in contract:
        _check_kv(contract["kv"], terms or Terms())
    if "late" in contract:
        check_late(contract, 0, vision or VisionTerms())
    asked = contract.get("speculation", "auto")
    if isinstance(asked, Mapping):
        chosen = dict(asked)
        nodes = chosen.pop("max_nodes", 1)
        if type(nodes) is not int or nodes < 1:
            raise ValueError(f"thriftree.speculation.max_nodes must be a whole number from 1, not {nodes!r}")
        registry.configure(str(chosen.pop("method", registry.DEFAULT_METHOD)), chosen)
    elif asked not in ("auto", "off"):
        raise ValueError(f"thriftree.speculation must be 'auto', 'off' or an object, not {asked!r}")


def _check_kv(asked: Any, terms: Terms) -> None:
    try:
        checked(asked, terms)
    except Refused as error:
        raise ValueError(f"thriftree.{error}") from None


def check_late(contract: Mapping[str, Any], tokens: int, terms: VisionTerms) -> None:
    """Raise ValueError where a prompt of so many tokens cannot be given what it asks of the late layers."""
    try:
        vision_request.check_late(contract.get("late", "off"), tokens, terms)
    except Refused as error:
        raise ValueError(f"thriftree.{error.field.removeprefix('vision.')}: {error.why}") from None


def _excluded(params: Any) -> bool:
    """A thinking budget counts steps in a state that a walk cannot move: such a request runs without drafts."""
    return params.thinking_token_budget is not None
