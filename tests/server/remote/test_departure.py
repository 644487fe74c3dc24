from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from thriftree.server.remote.departure import Departure


class Client:
    """An ASGI `receive`: the body, then a disconnect when it hangs up."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def __call__(self) -> Message:
        return await self.messages.get()

    def hang_up(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


async def test_work_ends_when_the_client_leaves() -> None:
    client, reached = Client(), False
    asyncio.get_running_loop().call_later(0.01, client.hang_up)
    async with Departure(client) as departure:
        await asyncio.sleep(5)
        reached = True
    assert departure.left and not reached
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0.01)  # nothing of it comes later


async def test_a_connection_closed_after_the_answer_is_no_departure() -> None:
    client = Client()
    async with Departure(client) as departure:
        departure.answered()
        client.hang_up()
        await asyncio.sleep(0.02)
    assert not departure.left


async def test_somebody_elses_cancellation_passes() -> None:
    client = Client()

    async def work() -> None:
        async with Departure(client):
            await asyncio.sleep(5)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_deadline_and_a_departure_at_once() -> None:
    client = Client()

    async def work() -> None:
        async with Departure(client):
            await asyncio.sleep(5)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    client.hang_up()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_pass_and_nothing_goes_on_listening() -> None:
    client = Client()
    with pytest.raises(ValueError, match="mine"):
        async with Departure(client):
            await asyncio.sleep(0)
            raise ValueError("mine")
    client.hang_up()
    await asyncio.sleep(0.01)
    assert client.messages.qsize() == 1
