"""Pictures: by URL from public addresses only; one that cannot be had or read is the client's mistake, by its field.

vLLM fetches whatever URL a request names. A server in a private network would be a way into it: the cloud's metadata
service, the database's status page. The check is made at the socket, on the address that is connected to, so neither a
name that resolves to a private address nor a redirect to one slips through.

Decoders fail in many ways on broken files, and vLLM makes a 500 of those that it does not expect.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any
from urllib.request import getproxies

import aiohttp
from vllm.connections import HTTPConnection
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

NAME = "thriftree"
_WHERE = "VLLM_MEDIA_CONNECTOR"


class PrivateAddress(ValueError):
    """A URL leads to an address that is not public."""


def install(private: bool) -> None:
    """Make vLLM fetch through us, unless the operator has named another connector.

    Args:
        private: addresses that are not public are allowed.
    """
    if os.environ.setdefault(_WHERE, NAME) != NAME:
        return
    connection = GuardedConnection(private)

    class Connector(MediaConnector):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **{"connection": connection, **given})

        async def fetch_image_async(self, image_url: Any, **options: Any) -> Any:
            try:
                return await super().fetch_image_async(image_url, **options)
            except VLLMClientError:
                raise
            except Exception as error:
                raise unreadable(error) from None

    MEDIA_CONNECTOR_REGISTRY.register(NAME)(Connector)


def unreadable(error: Exception) -> VLLMValidationError:
    """A 400 that names `image_url`, for whatever a decoder says."""
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return VLLMValidationError(f"image_url: cannot be read as an image: {why}", parameter="image_url")


class GuardedConnection(HTTPConnection):
    """vLLM's client for media, with a guard on its sockets; with a proxy in the environment, that one is the guard."""

    def __init__(self, private: bool) -> None:
        super().__init__()
        self._guard = None if private or getproxies().keys() & {"http", "https", "all"} else public_socket

    async def get_async_client(self) -> aiohttp.ClientSession:
        if self._async_client is None:
            connector = aiohttp.TCPConnector(socket_factory=self._guard)
            self._async_client = aiohttp.ClientSession(trust_env=True, connector=connector)
        return self._async_client

    async def async_get_bytes(self, url: str, **options: Any) -> bytes:
        """Raises VLLMValidationError (a 400 that names `image_url`) for whatever goes wrong on the way."""
        try:
            data: bytes = await super().async_get_bytes(url, **options)
        except PrivateAddress as error:
            raise VLLMValidationError(f"image_url: {error}", parameter="image_url") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise VLLMValidationError(f"image_url: cannot be fetched: {why}", parameter="image_url") from None
        return data


def public_socket(address: Any) -> socket.socket:
    """A socket for an ``addrinfo``. Raises PrivateAddress."""
    family, kind, protocol, _, place = address
    found = ipaddress.ip_address(str(place[0]).partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if not found.is_global or found.is_multicast:
        raise PrivateAddress(
            "it leads to an address that is not public; this server fetches none (--limits-private-media)"
        )
    return socket.socket(family, kind, protocol)
