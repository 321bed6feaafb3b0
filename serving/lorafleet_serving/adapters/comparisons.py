"""Which answers are followed, because another version's are compared with them."""

from __future__ import annotations

from lorafleet_serving.adapters.answer_watch import AnswerWatch
from lorafleet_serving.adapters.catalog import Catalog, CatalogVersion, ServedAdapter
from lorafleet_serving.adapters.shadow_traffic import Ask, ShadowTraffic


class Comparisons:
    """Follows answers for canaries and shadows."""

    def __init__(self, catalog: Catalog, traffic: ShadowTraffic) -> None:
        self._catalog = catalog
        self._traffic = traffic

    def watches(self, version: ServedAdapter | None, asked: str, ask: Ask) -> tuple[AnswerWatch, ...]:
        """What is to follow an answer of a version.

        Only requests for the bare name are compared: who names a version or an alias may well ask something else.

        Args:
            version: what answers.
            asked: the name by which it was asked.
            ask: asks another version the same.
        """
        if not isinstance(version, CatalogVersion) or asked != version.name:
            return ()
        watches: list[AnswerWatch] = []
        if (canary := self._catalog.canary_with(version)) is not None:
            watches.append(canary.watch(version.digest))
        if (mirrored := self._catalog.shadow_of(version)) is not None:
            watches.append(self._traffic.watch(*mirrored, ask))
        return tuple(watches)

    def stop(self) -> None:
        """Compare no more."""
        self._traffic.stop()
