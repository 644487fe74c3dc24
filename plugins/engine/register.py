"""The `vllm.general_plugins` entry point: vLLM calls `register` in every process before it builds anything."""

from __future__ import annotations

import functools
from typing import Any

from thriftree.plugins.engine.contract_var import EXTRA_ARGS_KEY

PROPOSER = "thriftree.plugins.engine.proposer.TreeProposer"
WORKER = "thriftree.plugins.engine.worker.TreeCPUWorker"
SCHEDULER = "thriftree.plugins.engine.scheduler.TreeScheduler"
#: Why an engine without our options compresses nothing.
NOT_TOLD = """this engine was started without it (--additional-config '{"thriftree": {"kv": {}}}' switches it on)"""


def register() -> None:
    """Give an engine trees, compressed caches or pruned images where it is asked to; others stay as they are.

    Safe to call twice.
    """
    from vllm.platforms import current_platform
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    from thriftree.plugins.engine.vision import families

    families.register()
    platform = type(current_platform)
    if not getattr(platform.check_and_update_config, "thriftree", False):
        _hook_config(platform)
    if not getattr(SamplingParams._validate_spec_decode, "thriftree", False):
        _lift_refusals(SamplingParams)
    if not getattr(InputProcessor._validate_params, "thriftree", False):
        _check_contracts(InputProcessor)


def uses_trees(vllm_config: Any) -> bool:
    """Whether the engine was asked for our proposer."""
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.method == "custom_class" and speculative.model == PROPOSER


def _hook_config(platform: Any) -> None:
    stock = platform.check_and_update_config.__func__

    @functools.wraps(stock)
    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        from thriftree.plugins.engine.kv.support import uses_compression
        from thriftree.plugins.engine.vision.late import support as late
        from thriftree.plugins.engine.vision.support import settle

        trees, compression = uses_trees(vllm_config), uses_compression(vllm_config)
        if trees or compression:
            _wire(vllm_config, trees)
        elif late.layer_of(vllm_config) is not None:
            late.wire(vllm_config)
        stock(cls, vllm_config)
        settle(vllm_config)

    check_and_update_config.thriftree = True  # type: ignore[attr-defined]
    platform.check_and_update_config = classmethod(check_and_update_config)


def _wire(vllm_config: Any, trees: bool) -> None:
    from thriftree.plugins.engine import surface
    from thriftree.plugins.engine.refusals import refuse

    surface.check_version()
    if trees:
        refuse(vllm_config)
    if vllm_config.parallel_config.worker_cls == "auto":
        vllm_config.parallel_config.worker_cls = WORKER
    if vllm_config.scheduler_config.scheduler_cls is None:
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER


def _lift_refusals(params: Any) -> None:
    """vLLM refuses min_p and logit_bias under any speculation; trees apply them as plain decoding does."""
    stock = params._validate_spec_decode

    @functools.wraps(stock)
    def _validate_spec_decode(self: Any, speculative_config: Any) -> None:
        if speculative_config is None or speculative_config.model != PROPOSER:
            stock(self, speculative_config)

    _validate_spec_decode.thriftree = True  # type: ignore[attr-defined]
    params._validate_spec_decode = _validate_spec_decode


def _check_contracts(processor: Any) -> None:
    """A stock server's clients say in ``vllm_xargs`` what they want; what cannot be is a 400."""
    from vllm.exceptions import VLLMValidationError

    from thriftree.plugins.engine.drafting import check_contract, check_late, read_contract
    from thriftree.plugins.engine.kv.plan import check_room
    from thriftree.plugins.engine.kv.support import terms_of
    from thriftree.plugins.engine.vision.support import settings_of
    from thriftree.plugins.engine.vision.wish import forget
    from thriftree.plugins.kv_cache.request import Terms

    def terms(mine: Any) -> Any:
        """Worked out once for each engine: it takes 20 ms. One that was not told of us compresses nothing."""
        if "thrift_terms" not in vars(mine):
            config = mine.vllm_config
            ours = uses_trees(config) or EXTRA_ARGS_KEY in (config.additional_config or {})
            mine.thrift_terms = terms_of(config) if ours else Terms(reason=NOT_TOLD)
        return mine.thrift_terms

    stock = processor._validate_params

    @functools.wraps(stock)
    def _validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        extra = getattr(params, "extra_args", None)
        if extra and EXTRA_ARGS_KEY in extra:
            try:
                check_contract(extra[EXTRA_ARGS_KEY], terms(self), settings_of(self.model_config).terms)
            except ValueError as error:
                raise VLLMValidationError(str(error), parameter=f"vllm_xargs.{EXTRA_ARGS_KEY}") from error
        return stock(self, params, *args, **kwargs)

    _validate_params.thriftree = True  # type: ignore[attr-defined]
    processor._validate_params = _validate_params
    whole = processor.process_inputs

    @functools.wraps(whole)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = whole(self, *args, **kwargs)
        params = request.sampling_params
        if params is not None and EXTRA_ARGS_KEY in (params.extra_args or {}):
            tokens = request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds
            try:
                check_room(params, len(tokens), terms(self))
                contract = read_contract(params.extra_args[EXTRA_ARGS_KEY])
                check_late(contract, len(tokens), settings_of(self.model_config).terms)
            except ValueError as error:
                hashes = [one.mm_hash or one.identifier for one in request.mm_features or ()]
                forget(self.renderer.mm_processor_cache, hashes)
                raise VLLMValidationError(str(error), parameter=f"vllm_xargs.{EXTRA_ARGS_KEY}") from error
        return request

    processor.process_inputs = process_inputs
