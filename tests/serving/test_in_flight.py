"""What a pod that ends has taken on, and what it takes no more."""

from __future__ import annotations

import asyncio

import pytest

from lorafleet_serving.exceptions import PodUnavailable
from lorafleet_serving.in_flight import InFlight


async def test_what_is_read_when_the_pod_begins_to_end_is_waited_for_and_nothing_else_is_taken() -> None:
    work = InFlight()
    with work.preparing():
        draining = asyncio.create_task(work.drain(60.0))
        await asyncio.sleep(0)
        assert work.is_draining
        with pytest.raises(PodUnavailable, match="shutting down"), work.preparing():
            pass
        # Its answer may still begin, as long as the pod waits.
        work.check_open()
        assert not draining.done()
    await draining
    with pytest.raises(PodUnavailable):
        work.check_open()
