"""What follows the registry: looks at it, brings up what it wants, and has it in memory when it is asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_serving.adapters.administration import Administration
from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import Catalog, CatalogVersion
from lorafleet_serving.adapters.comparisons import Comparisons
from lorafleet_serving.adapters.hand_loaded import HandLoaded
from lorafleet_serving.adapters.hand_loading import HandLoading
from lorafleet_serving.adapters.handle import FetcherHandle
from lorafleet_serving.adapters.host import HostTier
from lorafleet_serving.adapters.merged import MergedAdapters
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.adapters.rollout import Rollout
from lorafleet_serving.adapters.shadow_traffic import ShadowTraffic
from lorafleet_serving.adapters.smoke import SmokeTest
from lorafleet_serving.adapters.snapshot import CatalogSnapshot
from lorafleet_serving.adapters.trial import Trial
from lorafleet_serving.adapters.trial_memory import TrialMemory, trial_conditions
from lorafleet_serving.adapters.watcher import RegistryLook, RegistryWatcher
from lorafleet_serving.config import PodConfig
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import AdapterRefusal
from lorafleet_serving.loop import post
from lorafleet_serving.tokenizer import PodTokenizer

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PodParts:
    """What of a pod the followers of its registry work with."""

    config: PodConfig
    catalog: Catalog
    engine: EngineHandle
    fetcher: FetcherHandle
    host: HostTier
    limits: WaitingLimits


class Following:
    """Follows one registry. Runs on the front's event loop; `on_progress` is told of every look."""

    def __init__(
        self,
        endpoint: RegistryEndpoint,
        base_digest: str,
        tokenizer: PodTokenizer,
        parts: PodParts,
        on_progress: Callable[[], None],
    ) -> None:
        config, client = parts.config, RegistryClient(endpoint)
        artifacts = Artifacts(client, parts.fetcher, base_digest)
        self.residency = Residency(
            parts.host, parts.engine, artifacts, parts.limits, self._refuse, recheck_s=config.refusal_recheck_s
        )
        self.merged = MergedAdapters(
            parts.fetcher,
            parts.host,
            self.residency,
            parts.limits,
            max_adapters=config.max_merged_adapters,
            idle_limit_s=config.merged_idle_s,
        )
        smoke = SmokeTest(parts.engine, tokenizer, config.smoke_tokens)
        memory = TrialMemory(config.own_folder, trial_conditions(config, base_digest))
        trial = Trial(parts.engine, parts.host, smoke, memory)
        self._rollout = Rollout(
            parts.catalog,
            artifacts,
            self.residency,
            trial,
            refusal_recheck_s=config.refusal_recheck_s,
            canary_window_s=config.canary_window_s,
        )
        to_loop = partial(post, asyncio.get_running_loop())
        self._watcher = RegistryWatcher(
            client,
            base_digest,
            config.poll_interval_s,
            on_look=partial(to_loop, self._apply),
            on_error=partial(to_loop, self._note_error),
        )
        base_names = (config.base_id, config.engine.model.resolve().name)
        self.by_hand = HandLoading(parts.catalog, artifacts, self.residency, trial, base_names)
        self.administration = Administration(parts.host, self.residency, artifacts)
        self.comparisons = Comparisons(parts.catalog, ShadowTraffic(parts.engine, parts.host, self.residency))
        self._catalog = parts.catalog
        self._snapshot = CatalogSnapshot(config.own_folder, base_digest)
        self._on_progress = on_progress
        self._knows_anything = False
        self.error: str | None = None
        """Why the registry could not be read when that was last tried."""
        self.synced_at: float | None = None
        """Unix time of the last complete look."""
        self._looked_at = time.monotonic()

    @property
    def is_settled(self) -> bool:
        """Whether every wanted version has come to a first result, and it is known what is wanted."""
        return self._knows_anything and self._rollout.is_settled

    @property
    def lag_s(self) -> float:
        """Seconds since the last complete look, or from the start on where there was none yet."""
        return time.monotonic() - self._looked_at

    def start(self) -> None:
        """Begin to look."""
        self._watcher.start()

    def stop(self) -> None:
        """End every task."""
        self._watcher.stop()
        self._rollout.stop()
        self.comparisons.stop()
        self.residency.stop()

    def nudge(self, name: str) -> None:
        """Look at one name at once."""
        self._watcher.nudge(name)

    def bring_back(self, digests: Iterable[str]) -> None:
        """Have in the engine again what it lost."""
        by_digest = {version.digest: version for version in self._catalog.versions()}
        self.residency.prefetch([by_digest[digest] for digest in digests if digest in by_digest], evicting=False)

    def _apply(self, look: RegistryLook) -> None:
        self._rollout.apply(look)
        self.by_hand.give_way()
        self.merged.expire()
        if look.name is None:
            self._knows_anything = True
            self.synced_at = time.time()
            self._looked_at = time.monotonic()
            self.error = None
        if self.synced_at is not None:
            self._snapshot.save(self._catalog)
        self._on_progress()

    def _note_error(self, reason: str) -> None:
        if reason != self.error:
            _logger.warning("%s; what is loaded goes on serving", reason)
        self.error = reason
        if not self._knows_anything:
            self._take_snapshot()
        self._on_progress()

    def _take_snapshot(self) -> None:
        """Serve what served last, until the registry says what should."""
        look = self._snapshot.look()
        if look.adapters:
            _logger.warning(
                "the registry is away at the start: serving the %d adapters of last time", len(look.adapters)
            )
            self._rollout.apply(look)
            self._snapshot.place(self._catalog)
            self._knows_anything = True

    def _refuse(self, version: CatalogVersion, error: AdapterRefusal) -> None:
        if isinstance(version, HandLoaded):
            self.by_hand.refuse(version, error)
        else:
            self._rollout.refuse(version, error)
