from __future__ import annotations

import asyncio
import socket

import pytest

from lorafleet_serving.api.server import listen
from lorafleet_serving.exceptions import InvalidSetting


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_answers_and_tokens_are_sent_without_waiting_for_an_acknowledgement(host: str) -> None:
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen(host, 0)
    async with await asyncio.start_server(answer, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await accepted == 1
        writer.close()


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSetting, match=f"127.0.0.1:{port}.*--port"):
            listen("127.0.0.1", port)
