"""The pods that the controller knows: nudges to them, and what they report.

Each pod is watched by a thread of its own, so that one that hangs delays nobody else. After a nudge the
thread asks often, then less and less often. All of them together ask so often and no oftener: many pods are each
asked less.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from lorafleet_pipeline.registry.herald import Herald
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_serving.client import PodClient, PodError, PodUnreachable

_logger = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
_FIRST_INTERVAL_S = 0.03
_INTERVAL_GROWTH = 1.25
_LAST_INTERVAL_S = 2.0
_MAX_ASKS_PER_S = 100
"""Reports that are asked for in a second, of all pods together, while they are asked most often: the controller may
share its process with MLflow, whose answers the pods wait for just then."""

OnChange = Callable[[set[str] | None], None]
"""Told the adapters whose part of a report changed; None for all of them."""


class PodWatch:
    """Keeps the last report of one pod."""

    def __init__(self, client: PodClient, on_change: OnChange, first_interval_s: float = _FIRST_INTERVAL_S) -> None:
        self.state = PodState(client.url)
        self._client = client
        self._on_change = on_change
        self._first_interval_s = self._interval_s = first_interval_s
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pod-watch {client.url}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End after the question that is under way."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def hurry(self) -> None:
        """Ask at once, and often for a while."""
        self._interval_s = self._first_interval_s
        self._wake.set()

    def ask(self) -> None:
        """Ask once and tell what changed."""
        before = self.state
        try:
            self.state = PodState(before.url, self._client.report())
        except (PodError, PodUnreachable) as error:
            self.state = PodState(before.url, before.report, str(error))
        changed = _changed(before, self.state)
        if changed is None or changed:
            self._on_change(changed)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.ask()
            except Exception as error:
                # A watch that ends would freeze `live` for good, and an old report is no word on what is served now.
                _logger.exception("watching pod %s failed", self.state.url)
                self.state = PodState(self.state.url, self.state.report, f"its report cannot be read: {error!r}")
            # However often it is hurried.
            self._stopped.wait(self._first_interval_s)
            self._wake.wait(self._interval_s - self._first_interval_s)
            self._wake.clear()
            last_interval_s = max(self._first_interval_s, _LAST_INTERVAL_S)
            self._interval_s = min(self._interval_s * _INTERVAL_GROWTH, last_interval_s)


class Pods:
    """All pods of the deployment."""

    def __init__(self, settings: PlatformSettings, on_change: OnChange) -> None:
        first_s = max(_FIRST_INTERVAL_S, len(settings.pods) / _MAX_ASKS_PER_S)
        self._watches = [PodWatch(_client(url, settings), on_change, first_s) for url in settings.pods]
        self._heralds = [
            Herald(_client(watch.state.url, settings), settings.webhook_secret, watch.hurry) for watch in self._watches
        ]

    @property
    def states(self) -> Sequence[PodState]:
        """What is known of each pod now."""
        return [watch.state for watch in self._watches]

    def start(self) -> None:
        """Begin to watch."""
        for watch in self._watches:
            watch.start()

    def stop(self) -> None:
        """Stop watching."""
        for herald in self._heralds:
            herald.stop()
        for watch in self._watches:
            watch.stop()

    def ask(self) -> None:
        """Ask every pod once, in this thread."""
        for watch in self._watches:
            watch.ask()

    def nudge(self, name: str) -> None:
        """Tell every pod to look at one adapter; does not wait, and a pod that misses it polls anyway."""
        for herald in self._heralds:
            herald.tell(name)


def _client(url: str, settings: PlatformSettings) -> PodClient:
    return PodClient(url, settings.admin_token or None, timeout_s=_TIMEOUT_S)


def _changed(before: PodState, after: PodState) -> set[str] | None:
    """Adapters on which two states differ; None, for all, where the pod came or went."""
    if (before.error is None) != (after.error is None) or not before.asked:
        return None
    old, new = _adapters(before), _adapters(after)
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


def _adapters(state: PodState) -> dict[str, object]:
    if state.report is None:
        return {}
    return {
        adapter.name: (
            adapter.serving,
            adapter.canary and (adapter.canary.version, adapter.canary.stopped),
            {(item.version, item.digest, item.state, item.error) for item in adapter.versions},
        )
        for adapter in state.report.adapters
    }
