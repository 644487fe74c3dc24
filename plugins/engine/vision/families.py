"""vLLM's model classes with pruned images. Classes are made when vLLM asks this module for one by its name."""

from __future__ import annotations

import types
from dataclasses import replace
from importlib import import_module
from typing import Any

from thriftree.plugins.engine.vision.architectures import FAMILIES


def register() -> None:
    """Tell vLLM's registry of our classes, by name only. Not another vLLM's than ours. Safe to call twice."""
    from vllm.model_executor.models.registry import ModelRegistry

    from thriftree.plugins.engine.surface import WrongVersion, check_version

    try:
        check_version()
    except WrongVersion:
        return  # as it is; an engine that is asked for us says so
    for name in FAMILIES:
        ModelRegistry.register_model(name, f"{__name__}:{name}")


def __getattr__(name: str) -> Any:
    if name not in FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = _made(name)
    return made


def _made(name: str) -> type:
    from thriftree.plugins.engine.vision.model import MRoPEPruningMixin, PruningMixin
    from thriftree.plugins.engine.vision.processor import pruning

    family = FAMILIES[name]
    stock = getattr(import_module(f"vllm.model_executor.models.{family.module}"), name)
    factory = stock._processor_factory
    body = {
        "__module__": __name__,
        "_processor_factory": replace(factory, processor=pruning(factory.processor)),
        "thrift_family": family,
    }
    bases = (MRoPEPruningMixin if family.mrope else PruningMixin, stock)
    return types.new_class(name, bases, exec_body=lambda space: space.update(body))
