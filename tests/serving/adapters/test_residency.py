"""Versions that requests ask for, and merged adapters: who is told what, and what is counted, whoever leaves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.artifacts import Artifacts
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.eviction import EvictionOrder, EvictionPolicy
from lorafleet_serving.adapters.handle import FetcherHandle
from lorafleet_serving.adapters.host import HostTier
from lorafleet_serving.adapters.merge_recipe import MergeMember, MergeRecipe
from lorafleet_serving.adapters.merged import MergedAdapter, MergedAdapters
from lorafleet_serving.adapters.messages import Fetched, Merged
from lorafleet_serving.adapters.residency import Residency
from lorafleet_serving.adapters.watcher import RegisteredVersion
from lorafleet_serving.config import FetcherConfig
from lorafleet_serving.engine.request import ANONYMOUS
from lorafleet_serving.engine.waiting_limits import WaitingLimits
from lorafleet_serving.exceptions import AdapterNotReady, AdapterRefusal, FetchFailed, NoRoom, PodUnavailable, QueueFull
from tests.serving.adapters.memory_engine import MemoryEngine

BUDGET = 100
RECHECK_S = 600.0


class Disk(Artifacts):
    """Has what it has, and knows what is wrong with the rest."""

    def __init__(self, fetcher: FetcherHandle) -> None:
        super().__init__(RegistryClient(RegistryEndpoint("http://127.0.0.1:1")), fetcher, "base")
        self.wrong: set[str] = set()
        self.is_away = False
        self.num_tries = 0
        self.allowed = asyncio.Event()
        self.allowed.set()

    async def have(self, version: CatalogVersion) -> Fetched:
        self.num_tries += 1
        await self.allowed.wait()
        if self.is_away:
            raise FetchFailed("S3 is away")
        if version.label in self.wrong:
            raise AdapterRefusal(f"the gate of {version.label} failed")
        return Fetched(0, "folder", 1, {}, "")


class Merger(FetcherHandle):
    """Merges at once, unless it is told to take its time, or to fail."""

    def __init__(self, cache_dir: Path) -> None:
        super().__init__(FetcherConfig(cache_dir), silence_limit_s=10.0)
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.is_away = False

    async def merge(self, recipe: MergeRecipe) -> Merged:
        await self.allowed.wait()
        if self.is_away:
            raise FetchFailed("the fetcher is away")
        return Merged(0, "folder", 1)


class Bench:
    """Residency over an engine in memory."""

    def __init__(self, tmp_path: Path, digests: list[str], budget: int = BUDGET, recheck_s: float = RECHECK_S) -> None:
        self.engine = MemoryEngine(dict.fromkeys(digests, 1), budget)
        self.host = HostTier(self.engine, budget, EvictionOrder(EvictionPolicy.LRU), room_limit_s=1.0)
        self.merger = Merger(tmp_path)
        self.disk = Disk(self.merger)
        self.limits = WaitingLimits(4, [ANONYMOUS])
        self.refused: list[str] = []
        self.residency = Residency(
            self.host,
            self.engine,
            self.disk,
            self.limits,
            lambda version, error: self.refused.append(version.label),
            recheck_s=recheck_s,
        )
        self.merged = MergedAdapters(
            self.merger, self.host, self.residency, self.limits, max_adapters=3, idle_limit_s=600.0
        )

    async def load(self, version: CatalogVersion) -> None:
        with self.host.lease(version.digest):
            await self.residency.load(version, ANONYMOUS)

    async def merge(self, merged: MergedAdapter) -> None:
        with self.host.lease(merged.digest):
            await self.merged.load(merged, ANONYMOUS)


def _version(name: str, digest: str) -> CatalogVersion:
    registered = RegisteredVersion(name, 1, digest, "source", withdrawn=False, fingerprint="tags")
    return CatalogVersion(registered, state=ServeState.READY)


def _merged(number: int) -> MergedAdapter:
    members = (MergeMember("a", 1.0), MergeMember("b", float(number)))
    return MergedAdapter(MergeRecipe(members), (), f"a+b-{number}")


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_wrong_with_one_version_does_not_refuse_another_of_the_same_bytes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["shared"])
    good, bad = _version("good", "shared"), _version("bad", "shared")
    bench.disk.wrong.add(bad.label)
    bench.disk.allowed.clear()
    asking = [asyncio.create_task(bench.load(version)) for version in (bad, good)]
    await _settle()
    bench.disk.allowed.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results[0], AdapterNotReady)
    assert results[1] is None
    assert bench.refused == [bad.label]


async def test_what_failed_a_moment_ago_is_told_and_not_tried_until_somebody_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, list("ab"))
    version, other = _version("a", "a"), _version("b", "b")
    bench.disk.is_away = True
    for _ in range(5):
        with pytest.raises(PodUnavailable, match="S3 is away"):
            await bench.load(version)
    assert bench.disk.num_tries == 1
    with pytest.raises(PodUnavailable, match="S3 is away"):
        await bench.load(other)
    assert bench.disk.num_tries == 2, "another was not tried"
    bench.disk.is_away = False
    bench.residency.retry(version)
    await bench.load(version)
    assert bench.host.holds("a")
    # What was let go of and comes again has failed in nothing.
    bench.residency.let_go("b")
    await bench.load(other)


async def test_what_failed_is_tried_again_by_itself_within_the_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["a"], recheck_s=0.05)
    bench.disk.is_away = True
    while bench.disk.num_tries < 3:
        with pytest.raises(PodUnavailable, match="S3 is away"):
            await bench.load(_version("a", "a"))
        await asyncio.sleep(0.001)
    bench.disk.is_away = False
    while not bench.host.holds("a"):
        with suppress(PodUnavailable):
            await bench.load(_version("a", "a"))
        await asyncio.sleep(0.001)
    assert bench.disk.num_tries == 4


async def test_files_that_left_the_disk_before_they_were_read_are_brought_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ["a"])
    bench.engine.num_gone = 1
    await bench.load(_version("a", "a"))
    assert bench.disk.num_tries == 2
    bench.engine.unload("a")
    bench.engine.num_gone = 100
    with pytest.raises(PodUnavailable, match="left the disk"):
        await bench.load(_version("a", "a"))


async def test_who_waits_for_an_adapter_counts_as_waiting(tmp_path: Path) -> None:
    bench = Bench(tmp_path, list("abcdef"))
    bench.disk.allowed.clear()
    asking = [asyncio.create_task(bench.load(_version(digest, digest))) for digest in "abcd"]
    await _settle()
    with pytest.raises(QueueFull):
        await bench.load(_version("e", "e"))
    bench.disk.allowed.set()
    await asyncio.gather(*asking)
    await bench.load(_version("e", "e"))
    # One that is there waits for nothing.
    bench.disk.allowed.clear()
    asking = [asyncio.create_task(bench.load(_version("f", "f"))) for _ in range(4)]
    await _settle()
    await bench.load(_version("a", "a"))
    bench.disk.allowed.set()
    await asyncio.gather(*asking)


async def test_prefetching_evicts_nothing_where_it_may_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, list("abc"))
    bench.host = HostTier(bench.engine, 2, EvictionOrder(EvictionPolicy.LRU), room_limit_s=1.0)
    residency = Residency(
        bench.host, bench.engine, bench.disk, bench.limits, lambda version, error: None, recheck_s=RECHECK_S
    )
    bench.engine._ready.set()
    for digest in "ab":
        with bench.host.lease(digest):
            await residency.load(_version(digest, digest), ANONYMOUS)
    residency.prefetch([_version("c", "c")], evicting=False)
    await _settle()
    assert set(bench.engine.loaded) == {"a", "b"}
    assert not await residency.load_where_free(_version("c", "c"))
    assert await residency.load_where_free(_version("a", "a"))
    assert set(bench.engine.loaded) == {"a", "b"}
    residency.prefetch([_version("c", "c")], evicting=True)
    await _settle()
    assert set(bench.engine.loaded) == {"b", "c"}


async def test_merges_keep_their_limits_though_those_who_asked_have_left(tmp_path: Path) -> None:
    merges = [_merged(number) for number in range(40)]
    bench = Bench(tmp_path, [merged.digest for merged in merges])
    bench.engine.allowed.clear()
    for merged in merges:
        asking = asyncio.create_task(bench.merge(merged))
        await _settle()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    bench.engine.allowed.set()
    await _settle()
    assert bench.merged.num_held == len(bench.engine.loaded) == 3


async def test_who_waits_for_a_merge_counts_as_waiting(tmp_path: Path) -> None:
    merges = [_merged(number) for number in range(2)]
    bench = Bench(tmp_path, ["a", *(merged.digest for merged in merges)])
    await bench.merge(merges[0])
    bench.merger.allowed.clear()
    asking = [asyncio.create_task(bench.merge(merges[1])) for _ in range(4)]
    await _settle()
    with pytest.raises(QueueFull):
        await bench.merge(merges[1])
    with pytest.raises(QueueFull):
        await bench.load(_version("a", "a"))
    # One that is there waits for nothing.
    await bench.merge(merges[0])
    asking.pop().cancel()
    await _settle()
    await bench.load(_version("a", "a"))
    bench.merger.allowed.set()
    await asyncio.gather(*asking)


async def test_nothing_is_evicted_for_a_merge_that_nobody_asks_for_any_more(tmp_path: Path) -> None:
    merged = _merged(0)
    bench = Bench(tmp_path, ["a", merged.digest], budget=1)
    await bench.load(_version("a", "a"))
    bench.merger.allowed.clear()
    asking = asyncio.create_task(bench.merge(merged))
    await _settle()
    asking.cancel()
    await _settle()
    bench.merger.allowed.set()
    await _settle()
    assert set(bench.engine.loaded) == {"a"}
    await bench.merge(merged)
    assert set(bench.engine.loaded) == {merged.digest}


async def test_merges_that_failed_take_no_place_of_others(tmp_path: Path) -> None:
    merges = [_merged(number) for number in range(4)]
    bench = Bench(tmp_path, [merged.digest for merged in merges])
    for merged in merges[:2]:
        await bench.merge(merged)
    bench.merger.is_away = True
    with pytest.raises(PodUnavailable, match="fetcher is away"):
        await bench.merge(merges[3])
    bench.merger.is_away = False
    await bench.merge(merges[2])
    assert set(bench.engine.loaded) == {merged.digest for merged in merges[:3]}


async def test_a_merged_adapter_that_is_there_waits_for_no_other(tmp_path: Path) -> None:
    merges = [_merged(number) for number in range(4)]
    bench = Bench(tmp_path, [merged.digest for merged in merges])
    await bench.merge(merges[0])
    bench.engine.allowed.clear()
    asking = [asyncio.create_task(bench.merge(merged)) for merged in merges[1:3]]
    await _settle()
    await bench.merge(merges[0])
    with bench.host.lease(merges[0].digest), pytest.raises(NoRoom):
        await bench.merge(merges[3])
    assert bench.host.holds(merges[0].digest)
    bench.engine.allowed.set()
    await asyncio.gather(*asking)
    await bench.merge(merges[3])
    assert bench.merged.num_held == 3
