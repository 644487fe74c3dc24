"""Pictures by URL, against real HTTP servers on loopback."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from vllm.exceptions import VLLMValidationError

from thriftree.plugins.engine.media import GuardedConnection, PrivateAddress, public_socket

pytestmark = pytest.mark.engine

_TCP = (socket.SOCK_STREAM, 6, "")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Serves two bytes, a redirect to them, and nothing else."""

    async def picture(request: web.Request) -> web.Response:
        return web.Response(body=b"ok")

    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPFound("/picture")

    app = web.Application()
    app.router.add_get("/picture", picture)
    app.router.add_get("/moved", moved)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    await runner.cleanup()


async def fetch(url: str, private: bool) -> bytes:
    connection = GuardedConnection(private)
    try:
        return await connection.async_get_bytes(url, timeout=5)
    finally:
        await (await connection.get_async_client()).close()


@pytest.mark.parametrize("path", ["/picture", "/moved"])
async def test_a_private_address_is_refused_unless_allowed(url: str, path: str) -> None:
    assert await fetch(url + path, private=True) == b"ok"
    for place in (url, url.replace("127.0.0.1", "localhost")):
        with pytest.raises(VLLMValidationError, match="not public") as caught:
            await fetch(place + path, private=False)
        assert caught.value.parameter == "image_url"


async def test_what_is_not_there_is_the_clients_mistake(url: str) -> None:
    for place in (url + "/other", "http://127.0.0.1:1/", "http://no.such.host.invalid/"):
        with pytest.raises(VLLMValidationError, match="image_url: cannot be fetched"):
            await fetch(place, private=True)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"],
)
def test_addresses_that_are_not_public(address: str) -> None:
    with pytest.raises(PrivateAddress):
        public_socket((socket.AF_INET, *_TCP, (address, 80)))
    with pytest.raises(PrivateAddress):
        public_socket((socket.AF_INET6, *_TCP, (f"::ffff:{address}", 80, 0, 0)))


@pytest.mark.parametrize("address", ["::1", "fe80::1%eth0", "fc00::1", "ff02::1"])
def test_addresses_that_are_not_public_v6(address: str) -> None:
    with pytest.raises(PrivateAddress):
        public_socket((socket.AF_INET6, *_TCP, (address, 80, 0, 0)))


def test_public_ones_get_a_socket() -> None:
    public_socket((socket.AF_INET, *_TCP, ("8.8.8.8", 80))).close()
