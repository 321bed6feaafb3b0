"""How versions are brought up, with everything real but the place that their files come from."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lorafleet_contract.backoff import Backoff
from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters import rollout
from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import Catalog, CatalogVersion
from lorafleet_serving.adapters.eviction import EvictionOrder, EvictionPolicy
from lorafleet_serving.adapters.handle import FetcherHandle
from lorafleet_serving.adapters.host import HostTier
from lorafleet_serving.adapters.messages import Fetched
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.adapters.rollout import Rollout
from lorafleet_serving.adapters.smoke import SmokeTest
from lorafleet_serving.adapters.trial import Trial
from lorafleet_serving.adapters.trial_memory import TrialMemory
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion, RegistryLook
from lorafleet_serving.config import FetcherConfig
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.handle import EngineHandle
from lorafleet_serving.engine.request import ANONYMOUS
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import FetchFailed
from lorafleet_serving.tokenizer import PodTokenizer

_LIMIT_S = 60.0
LOOK = RegistryLook(
    {"a": DesiredAdapter("a", {"champion": 1}, {1: RegisteredVersion("a", 1, "digest", "source", False, "tags")})}
)


class AwayArtifacts(Artifacts):
    """Those of a store that is away."""

    def __init__(self, client: RegistryClient, fetcher: FetcherHandle, enough: int) -> None:
        super().__init__(client, fetcher, "base")
        self.num_tries = 0
        self.tried_enough = asyncio.Event()
        self._enough = enough

    async def fetch(self, version: CatalogVersion, refused_stamp: str | None) -> Fetched | None:
        self.num_tries += 1
        if self.num_tries >= self._enough:
            self.tried_enough.set()
        raise FetchFailed("the store is away")


async def test_a_version_that_failed_two_thousand_times_is_tried_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "_BACKOFF", Backoff(first_s=1e-9, longest_s=1e-6))
    catalog = Catalog()
    fetcher = FetcherHandle(FetcherConfig(tmp_path), silence_limit_s=10.0)
    limits = WaitingLimits(1, [ANONYMOUS])
    engine = EngineHandle(
        EngineConfig(tiny_model),
        limits=limits,
        silence_limit_s=10.0,
        on_ready=lambda: None,
        on_down=lambda: None,
        on_failure=lambda reason: None,
    )
    host = HostTier(engine, 1, EvictionOrder(EvictionPolicy.LRU), room_limit_s=1.0)
    trial = Trial(engine, host, SmokeTest(engine, PodTokenizer(tiny_model), 1), TrialMemory(tmp_path, "conditions"))
    artifacts = AwayArtifacts(RegistryClient(RegistryEndpoint("http://127.0.0.1:1")), fetcher, enough=2000)
    residency = Residency(host, engine, artifacts, limits, lambda version, error: None, recheck_s=30.0)
    bringing_up = Rollout(catalog, artifacts, residency, trial, refusal_recheck_s=_LIMIT_S, canary_window_s=_LIMIT_S)
    bringing_up.apply(LOOK)
    await asyncio.wait_for(artifacts.tried_enough.wait(), _LIMIT_S)
    bringing_up.stop()
    assert [version.state for version in catalog.versions()] == [ServeState.FAILED]
