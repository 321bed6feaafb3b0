"""The work that a pod has taken on: requests that are read, and answers that are made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lorafleet_serving.exceptions import PodUnavailable
from lorafleet_serving.generation import Generation

_logger = logging.getLogger(__name__)

_LOOK_S = 0.02


class InFlight:
    """Counts the work, and sees it to its end before the pod ends."""

    def __init__(self) -> None:
        self._generations: set[Generation] = set()
        self._num_prepared = 0
        self._is_closed = False
        self.is_draining = False

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """A request is read, and will make answers.

        Raises:
            PodUnavailable: the pod finishes what it has, and takes no more.
        """
        if self.is_draining:
            raise PodUnavailable("the pod is shutting down: ask another replica")
        self._num_prepared += 1
        try:
            yield
        finally:
            self._num_prepared -= 1

    def check_open(self) -> None:
        """Turn away an answer that there is no time for.

        Raises:
            PodUnavailable: the pod has waited long enough.
        """
        if self._is_closed:
            raise _ended()

    def add(self, generation: Generation) -> None:
        """An answer is made, until it is closed."""
        self._generations.add(generation)
        generation.on_close = self._generations.discard

    async def drain(self, limit_s: float) -> None:
        """Wait until everything has ended; what has not within the limit ends with an error that its caller sees."""
        self.is_draining = True
        deadline = time.monotonic() + limit_s
        while (self._generations or self._num_prepared) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)
        self._is_closed = True
        if self._generations:
            _logger.warning("%d answers did not end within %.0f s: they are ended", len(self._generations), limit_s)
        for generation in list(self._generations):
            generation.fail(_ended())


def _ended() -> PodUnavailable:
    return PodUnavailable("the pod shuts down and could not wait any longer: ask another replica")
