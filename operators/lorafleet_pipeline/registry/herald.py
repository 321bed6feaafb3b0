"""Tells one pod which adapters to look at."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from lorafleet_serving.client import PodClient, PodError, PodUnreachable

_logger = logging.getLogger(__name__)


class Herald:
    """A thread and a connection of its own, so that a pod that hangs keeps no other waiting.

    Names are told one after the other. One that is told again before its turn is told once, so that what waits is
    bounded by the number of adapters. A pod that does not answer is told nothing of what waits: it polls.
    """

    def __init__(self, client: PodClient, secret: str, on_told: Callable[[], None]) -> None:
        self._client = client
        self._secret = secret
        self._on_told = on_told
        self._told = threading.Condition()
        self._waiting: dict[str, None] = {}
        self._stopped = False
        self._thread: threading.Thread | None = None

    def tell(self, name: str) -> None:
        """Have the pod look at an adapter; does not wait."""
        with self._told:
            if self._stopped:
                return
            self._waiting[name] = None
            self._told.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"pod-nudge {self._client.url}", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End after the word that is under way; what waits is not told."""
        with self._told:
            self._stopped = True
            self._told.notify()
        if self._thread is not None:
            self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while (name := self._next()) is not None:
            try:
                self._client.nudge(name, self._secret)
            except PodError as error:
                _logger.warning("a change of %s could not be told: %s", name, error)
            except PodUnreachable as error:
                with self._told:
                    num_others = len(self._waiting)
                    self._waiting.clear()
                _logger.warning("a change of %s and %d others could not be told: %s", name, num_others, error)
            except Exception:  # The thread must outlive any one failure: the pod would be told nothing any more.
                _logger.exception("a change of %s could not be told", name)
            self._on_told()

    def _next(self) -> str | None:
        """The name that waits longest, which then waits no more; None at the end."""
        with self._told:
            self._told.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            name = next(iter(self._waiting))
            del self._waiting[name]
            return name
