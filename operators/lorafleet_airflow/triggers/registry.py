"""A trigger that fires when an adapter's champion alias moves in the registry.

All triggers of one registry share one poll loop of the triggerer: each poll yields the champions of every
adapter, each trigger picks its own. What was last reported is kept in Airflow's store of the watched asset,
so that a restart neither repeats a promotion nor misses one. Delivery is at least once.

The first look at an adapter without a remembered version reports the champion that stands there: the
receiver then makes sure that it is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Mapping
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from lorafleet_airflow.settings import REGISTRY_CONN_ID
from lorafleet_contract.aliases import Alias
from lorafleet_contract.exceptions import RegistryError

Champions = Mapping[str, int]
"""Champion version by adapter name."""

_NO_CHAMPION = ""


class RegistryEventTrigger(BaseEventTrigger):
    """
    Fires when the champion of one adapter changes; the payload names adapter, version and the one before.

    :param adapter: name of the adapter, which is the name of its registered model.
    :param registry_conn_id: connection of the registry.
    :param poll_interval_s: seconds between two looks at the registry.
    """

    def __init__(self, *, adapter: str, registry_conn_id: str = REGISTRY_CONN_ID, poll_interval_s: float = 5.0) -> None:
        super().__init__()
        self.adapter = adapter
        self.registry_conn_id = registry_conn_id
        self.poll_interval_s = poll_interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments to make this trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__name__}",
            {
                "adapter": self.adapter,
                "registry_conn_id": self.registry_conn_id,
                "poll_interval_s": self.poll_interval_s,
            },
        )

    def shared_stream_key(self) -> Hashable:
        """Triggers with an equal key share one poll loop."""
        return ("lorafleet-registry", self.registry_conn_id, self.poll_interval_s)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Champions, None]:
        """Poll the registry for ever; a registry that is down is logged and asked again."""
        from lorafleet_airflow.hooks.registry import LoRAFleetRegistryHook

        conn_id = kwargs["registry_conn_id"]
        log = LoRAFleetRegistryHook(conn_id).log
        client = None
        while True:
            try:
                client = client or await LoRAFleetRegistryHook.aget_client(conn_id)
                models = await asyncio.to_thread(client.search_models)
            except RegistryError as error:
                log.warning("The registry was not read, the next poll tries again: %s", error)
                client = None  # It may have moved: the connection is looked up again.
            else:
                yield {model.name: model.aliases[Alias.CHAMPION] for model in models if Alias.CHAMPION in model.aliases}
            await asyncio.sleep(kwargs["poll_interval_s"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Champions]) -> AsyncGenerator[TriggerEvent, None]:
        """Pick this adapter's moves out of the polls."""
        last = await self._recall()
        async for champions in shared_stream:
            version = champions.get(self.adapter)
            current = _NO_CHAMPION if version is None else str(version)
            if current == (last or _NO_CHAMPION):
                continue
            if version is not None:
                previous = int(last) if last else None
                yield TriggerEvent({"adapter": self.adapter, "version": version, "previous": previous})
            # Remembered only after the event was taken: a crash in between repeats it rather than losing it.
            last = current
            await self._remember(current)

    async def run(self) -> AsyncGenerator[TriggerEvent, None]:
        """A poll loop of its own, where the triggerer has no shared streams (before Airflow 3.3)."""
        async for event in self.filter_shared_stream(self.open_shared_stream(self.serialize()[1])):
            yield event

    @property
    def _key(self) -> str:
        return f"champion:{self.adapter}"

    async def _recall(self) -> str | None:
        store = getattr(self, "asset_state_store", None)
        if store is None:
            return None
        value = await store.aget(self._key)
        return None if value is None else str(value)

    async def _remember(self, version: str) -> None:
        store = getattr(self, "asset_state_store", None)
        if store is not None:
            await store.aset(self._key, version)
