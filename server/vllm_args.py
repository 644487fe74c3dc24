"""The command line of `vllm serve`, with our defaults under it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions as find_distributions
from pathlib import Path
from typing import Any, NoReturn

from thriftree.server.errors import StartError
from thriftree.zoo import cache

#: Set before vLLM is imported; the environment always wins.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_MAX_IMAGE_PIXELS": "50000000",  # a picture of 20 kB can claim more, and take 150 MB by then
}
#: On the CPU engine. Its ahead-of-time cache never loads in 0.32 ("no attribute 'finalize_loading'"), so that every
#: start would compile again; without it torch's own cache is used, and that one hits.
_CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_USE_AOT_COMPILE": "0"}
#: What `vllm serve` does with more than one process in front; the gateway is one process.
_REFUSED = {
    "headless": "--headless",
    "grpc": "--grpc",
    "data_parallel_multi_port_external_lb": "multi-port load balancing",
}


def environment() -> None:
    """Our defaults for vLLM's environment variables."""
    # The compiled model outlives a restart of the machine: torch's own default is the temporary folder.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.root() / "compiled"))
    on_cpu = any(find_distributions(name="vllm-cpu"))
    for name, value in {**_ENVIRONMENT, **(_CPU_ENVIRONMENT if on_cpu else {})}.items():
        os.environ.setdefault(name, value)


def make_parser() -> argparse.ArgumentParser:
    """vLLM's own parser: every flag, its types and its help."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser(prog="thriftree serve"))
    parser.set_defaults(model=None, host="127.0.0.1")
    setattr(parser, "error", _refuse)  # noqa: B010  (a method of the instance: one line instead of the whole usage)
    return parser


def _refuse(message: str) -> NoReturn:
    raise StartError(f"{message} (see `thriftree serve --help`)")


def parse(flags: Mapping[str, Any], argv: Sequence[str], default_model: str) -> argparse.Namespace:
    """Flags from the settings file, then from the command line, over our defaults.

    Without a model, `args.model` is left None and the flags suit the default model, served as `default_model`.
    """
    parser = make_parser()
    words = [*argv_of(flags), *argv]
    args = parser.parse_args(words)
    args.model = args.model_tag or args.model
    if args.model is None:
        parser.set_defaults(served_model_name=[default_model], dtype="float32", max_model_len=4096)
        args = parser.parse_args(words)
    validate(args)
    return args


def validate(args: argparse.Namespace) -> None:
    """vLLM's quick checks, and ours, before anything is loaded."""
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args

    for name, flag in _REFUSED.items():
        if getattr(args, name, False):
            raise StartError(f"{flag} is not for the gateway, which is one process: use `vllm serve` for it")
    if (args.api_server_count or 1) > 1:
        raise StartError(f"--api-server-count {args.api_server_count}: the gateway is one process")
    try:
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
    except (ValueError, TypeError, KeyError) as error:
        raise StartError(str(error.args[0] if error.args else error).removeprefix("Error: ")) from None


def argv_of(flags: Mapping[str, Any]) -> list[str]:
    """``{"max-model-len": 4096, "enforce-eager": true, "model": "m"}`` as words of the command line."""
    words: list[str] = []
    for key, value in flags.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif value is not None:
            words += [flag, str(value)]
    return words


def check_model(model: str) -> None:
    """What looks like a path must be a checkpoint folder (or a GGUF file); everything else is the hub's business."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    path = Path(model).expanduser()
    if looks_local and not path.exists():
        raise StartError(f"model {model}: no such folder")
    if path.is_dir() and not any((path / name).exists() for name in ("config.json", "params.json")):
        raise StartError(f"model {model}: no config.json in that folder, so no model that vLLM can load")
