"""From settings and vLLM's flags to a keyring, and what must not be served without one."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket

from thriftree.server.errors import StartError
from thriftree.server.keys.keyring import Keyring
from thriftree.server.keys.static import from_texts
from thriftree.server.sections import Auth

_EXPOSED = (
    "{where} is not loopback and no key is configured, so anybody could use this server: make keys "
    "(`thriftree keys create`, --auth-database; or --auth-keys-file, THRIFTREE_AUTH__KEYS), "
    "or say --auth-open true to serve everybody"
)


def take_vllm_keys(args: argparse.Namespace) -> list[str]:
    """The keys of vLLM's `--api-key`, else of `VLLM_API_KEY`; taken away, so that vLLM's own check is not built.

    vLLM's check knows these keys only and would refuse all others. As in vLLM, the flag hides the variable.
    """
    variable = os.environ.pop("VLLM_API_KEY", "")
    given = getattr(args, "api_key", None) or [variable]
    args.api_key = None
    return [key for key in given if key]


def open_keyring(auth: Auth, vllm_keys: list[str]) -> Keyring | None:
    """All keys that are configured; None: none are, and nobody is asked for one.

    A database or a keys file counts even while it is empty: then everybody is refused.

    Raises:
        StartError: one of the sources cannot be read.
    """
    own = [key.get_secret_value() for key in auth.keys]
    files = [auth.keys_file] if auth.keys_file is not None else []
    texts = [from_texts(own, "auth.keys")] if own else []
    texts += [from_texts(vllm_keys, "--api-key or VLLM_API_KEY")] if vllm_keys else []
    if auth.database is None and not files and not texts:
        return None
    return Keyring(auth.database, [*texts, *files])


def require_keys(keyring: Keyring | None, auth: Auth, host: str | None, uds: str | None) -> None:
    """Refuses to serve everybody by accident.

    Raises:
        StartError: no keys, not bound to loopback (or a Unix socket), and not told that this is meant.
    """
    if keyring is None and not auth.open and not uds and not is_loopback(host):
        raise StartError(_EXPOSED.format(where=f"--host {host or '(every address)'}"))


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can connect. Nothing, a wildcard, and a name that cannot be resolved: no."""
    if not host:
        return False
    try:
        found = [entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
        return bool(found) and all(ipaddress.ip_address(str(address).split("%")[0]).is_loopback for address in found)
    except (OSError, ValueError):
        return False
