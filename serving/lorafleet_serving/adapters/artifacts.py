"""The artifacts of registered versions: found by the registry's word, brought to disk by the fetcher."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from lorafleet_contract.digest import is_digest
from lorafleet_contract.exceptions import ContractError
from lorafleet_contract.registry import RegistryClient
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.hand_loaded import HandLoaded
from lorafleet_serving.adapters.handle import FetcherHandle
from lorafleet_serving.adapters.messages import Fetched, FetchOrder, HandFetched, HandOrder
from lorafleet_serving.adapters.watcher import RegisteredVersion
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed


class Artifacts:
    """Has versions of one base fetched. Runs on the front's event loop."""

    def __init__(self, client: RegistryClient, fetcher: FetcherHandle, base_digest: str) -> None:
        self._client = client
        self._fetcher = fetcher
        self._base_digest = base_digest

    def keep(self, digests: frozenset[str]) -> None:
        """Set the digests that the disk tier evicts last."""
        self._fetcher.keep(digests)

    def distrust(self, digest: str) -> None:
        """Have an adapter's files on disk hashed again before they are next used."""
        self._fetcher.distrust(digest)

    async def fetch(self, version: CatalogVersion, refused_stamp: str | None) -> Fetched | None:
        """Have a version looked up in S3, brought to disk and verified; None when the refused artifacts are unchanged.

        Raises:
            AdapterRefusal: it must not be served as it is.
            FetchFailed: it could not be fetched now.
            NoRoom: the disk tier has no room for it now.
        """
        return await self._fetcher.fetch(replace(await self._order(version), refused_stamp=refused_stamp))

    async def fetch_by_hand(self, order: HandOrder) -> HandFetched:
        """Have an adapter that is loaded by hand brought to disk and verified.

        Raises:
            AdapterRefusal, FetchFailed, NoRoom: as `fetch` does.
        """
        return await self._fetcher.fetch_by_hand(order)

    async def have(self, version: CatalogVersion) -> Fetched | HandFetched:
        """Have a version on disk, from wherever it comes first.

        Raises:
            AdapterRefusal, FetchFailed, NoRoom: as `fetch` does.
        """
        if isinstance(version, HandLoaded):
            return await self._fetcher.fetch_by_hand(version.order)
        found = await self._fetcher.fetch(replace(await self._order(version), at_hand=True))
        assert found is not None, "an order without a stamp was answered as unchanged"
        return found

    async def _order(self, version: CatalogVersion) -> FetchOrder:
        registered = version.registered
        if not is_digest(registered.digest):
            raise AdapterRefusal(f"tag lora.digest is {registered.digest!r}, which is no digest: register it again")
        if version.address is None:
            version.address = await asyncio.to_thread(self._find, registered)
        return FetchOrder(
            order_id=0,
            name=registered.name,
            version=registered.version,
            digest=registered.digest,
            base_digest=self._base_digest,
            address=version.address,
        )

    def _find(self, registered: RegisteredVersion) -> str:
        try:
            return self._client.get_artifact_address(registered.name, registered.version)
        except ContractError as error:
            label = f"{registered.name}:{registered.version}"
            raise FetchFailed(f"cannot find the artifacts of {label}: {error}") from error
