"""The few flags of `vllm serve` that a gateway without an engine has, and its socket. Without vLLM."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import socket
import ssl
from collections.abc import Sequence
from typing import NoReturn

from thriftree.server.errors import StartError
from thriftree.server.settings import Settings
from thriftree.server.vllm_args import argv_of

#: Settings that are about the engine's answers.
_ENGINES_OWN = ("thrift", "speculation", "kv", "vision")


def make_parser() -> argparse.ArgumentParser:
    """Names, defaults and attributes as vLLM's parser has them."""
    parser = argparse.ArgumentParser(prog="thriftree serve --engine URL", add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--uds")
    parser.add_argument("--root-path")
    for name, default in (("origins", []), ("methods", ["*"]), ("headers", ["*"])):
        parser.add_argument(f"--allowed-{name}", type=json.loads, default=default)
    parser.add_argument("--allow-credentials", action="store_true")
    parser.add_argument("--ssl-keyfile")
    parser.add_argument("--ssl-certfile")
    parser.add_argument("--ssl-ca-certs")
    parser.add_argument("--ssl-cert-reqs", type=int, default=int(ssl.CERT_NONE))
    parser.add_argument("--ssl-ciphers")
    levels = ["critical", "error", "warning", "info", "debug", "trace"]
    parser.add_argument("--uvicorn-log-level", choices=levels, default="info")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    setattr(parser, "error", _refuse)  # noqa: B010  (a method of the instance: one line instead of the whole usage)
    return parser


def parse(settings: Settings, words: Sequence[str]) -> argparse.Namespace:
    """Flags of the settings' `vllm` section, then of the command line.

    Raises:
        StartError: a flag that belongs to the engines, a model, or a wrong value.
    """
    args, rest = make_parser().parse_known_args([*argv_of(settings.vllm), *words])
    if rest:
        what = rest[0] if rest[0].startswith("-") else f"model {rest[0]}"
        raise StartError(f"{what}: not for a gateway with --engine, say it to the engines")
    for name in _ENGINES_OWN:
        if name in settings.model_fields_set:
            raise StartError(f"setting {name}: it has no effect with --engine, say it to the engines")
    if bool(args.ssl_keyfile) and not args.ssl_certfile:
        raise StartError("--ssl-keyfile without --ssl-certfile")
    for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
        path = getattr(args, name)
        if path and not os.path.isfile(path):
            raise StartError(f"--{name.replace('_', '-')} {path}: no such file")
    return args


def take_port(args: argparse.Namespace) -> tuple[socket.socket, str]:
    """A socket that nobody else listens on, and the URL that it is reached by.

    Raises:
        StartError: it cannot be had.
    """
    sock = socket.socket(socket.AF_UNIX if args.uds else _family(args.host))
    try:
        if args.uds:
            sock.bind(args.uds)
            return sock, f"unix:{args.uds}"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((args.host or "", args.port))
        sock.listen(1)  # a port that somebody listens on can be bound beside him, but not listened on
    except (OSError, OverflowError) as error:
        sock.close()
        where = args.uds or f"{args.host}:{args.port}"
        raise StartError(f"cannot listen on {where}: {getattr(error, 'strerror', None) or error}; use --port") from None
    scheme = "https" if args.ssl_certfile else "http"
    host = f"[{args.host}]" if ":" in args.host else args.host or "0.0.0.0"
    return sock, f"{scheme}://{host}:{sock.getsockname()[1]}"


def _family(host: str) -> socket.AddressFamily:
    try:
        return socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return socket.AF_INET


def _refuse(message: str) -> NoReturn:
    raise StartError(f"{message} (see `thriftree serve --help`)")
