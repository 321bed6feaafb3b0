"""Loads adapters that an administrator names by their address, beside those of the registry.

They are fetched, verified and tried as versions are, but for the gate, which never saw them. A name of the registry is
the registry's: it cannot be loaded by hand, and one that was loaded by hand ends when the registry comes to own it.
Runs on the front's event loop.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from lorafleet_contract.exceptions import InvalidName
from lorafleet_contract.names import check_adapter_name
from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import Catalog, CatalogVersion
from lorafleet_serving.adapters.hand_loaded import HandLoaded
from lorafleet_serving.adapters.messages import HandOrder
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.adapters.trial import Trial
from lorafleet_serving.exceptions import (
    AdapterRefusal,
    CannotLoad,
    FetchFailed,
    NameTaken,
    PodUnavailable,
    UnknownAdapter,
)

_logger = logging.getLogger(__name__)


class HandLoading:
    """Loads and unloads adapters by hand for one base, which goes by any of `base_names`."""

    def __init__(
        self, catalog: Catalog, artifacts: Artifacts, residency: Residency, trial: Trial, base_names: tuple[str, ...]
    ) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._residency = residency
        self._trial = trial
        self._base_names = base_names
        self._under_way: set[str] = set()

    async def load(self, name: str, address: str, *, in_place: bool, any_base: bool) -> None:
        """Load an adapter and have it answer under a name.

        Args:
            name: of requests for it.
            address: where its files are.
            in_place: whether it takes the place of another that was loaded by hand.
            any_base: whether it fits whatever its config says of its base.

        Raises:
            NameTaken: the name is the registry's, or the base model's.
            CannotLoad: the name is not valid or loaded already, or the adapter is refused.
            NoRoom: no tier has room for it.
            PodUnavailable: its files cannot be had now.
        """
        try:
            self._check_free(check_adapter_name(name), in_place=in_place)
        except InvalidName as error:
            raise CannotLoad(str(error), field="lora_name") from error
        order = HandOrder(0, name, address, () if any_base else self._base_names)
        self._under_way.add(name)
        try:
            loaded = await self._bring_up(order)
        except AdapterRefusal as error:
            raise CannotLoad(f"the adapter at {address!r} is refused: {error}", field="lora_path") from error
        except FetchFailed as error:
            raise PodUnavailable(f"the adapter at {address!r} cannot be had now: {error}") from error
        finally:
            self._under_way.discard(name)
        if name in self._catalog.adapters:  # The registry came to own it meanwhile.
            self._let_go(loaded.digest)
            raise _taken(name)
        before = self._catalog.by_hand.get(name)
        self._catalog.by_hand[name] = loaded
        if before is not None:
            self._let_go(before.digest)
        _logger.info("%s: loaded by hand from %s, %s", name, address, loaded.digest)

    def unload(self, name: str) -> None:
        """Let an adapter go; answers that run come to their end.

        Raises:
            NameTaken: the name is the registry's.
            UnknownAdapter: nothing was loaded by hand under it.
        """
        if name in self._catalog.adapters:
            raise _taken(name)
        if name not in self._catalog.by_hand:
            raise UnknownAdapter(f"The lora adapter {name!r} cannot be found.")
        self._end(name, "unloaded by hand")

    def give_way(self) -> None:
        """End what has a name that the registry has come to own."""
        for name in self._catalog.by_hand.keys() & self._catalog.adapters.keys():
            self._end(name, "the registry owns the name now, and what it registers serves under it")

    def refuse(self, version: CatalogVersion, error: AdapterRefusal) -> None:
        """What was good when it was loaded turned out to be bad: it ends."""
        self._trial.forget(version.digest)
        self._artifacts.distrust(version.digest)
        if self._catalog.by_hand.get(version.name) is version:
            self._end(version.name, str(error))

    async def _bring_up(self, order: HandOrder) -> HandLoaded:
        fetched = await self._artifacts.fetch_by_hand(order)
        try:
            await self._trial.run(fetched.digest, self._residency.files(fetched), None)
        except AdapterRefusal:
            self._let_go(fetched.digest)
            raise
        return HandLoaded.of(replace(order, digest=fetched.digest), fetched.digest)

    def _check_free(self, name: str, *, in_place: bool) -> None:
        if name in self._catalog.adapters or name in self._base_names:
            raise _taken(name)
        if name in self._under_way:
            raise CannotLoad(f"The lora adapter {name!r} is being loaded.", field="lora_name")
        if name in self._catalog.by_hand and not in_place:
            raise CannotLoad(
                f"The lora adapter {name!r} has already been loaded. "
                "If you want to load the adapter in place, set 'load_inplace' to True.",
                field="lora_name",
            )

    def _end(self, name: str, reason: str) -> None:
        version = self._catalog.by_hand.pop(name)
        _logger.warning("%s, loaded by hand from %s, ended: %s", name, version.address, reason)
        self._let_go(version.digest)

    def _let_go(self, digest: str) -> None:
        if all(item.digest != digest for item in self._catalog.versions()):
            self._residency.let_go(digest)


def _taken(name: str) -> NameTaken:
    return NameTaken(
        f"{name!r} is the base model, or an adapter of the registry, which alone says what serves under it: "
        "load by hand under another name, or promote a version"
    )
