"""What a pod says about its adapters, in the contract's form."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lorafleet_contract.fleet import (
    AdapterReport,
    CanaryReport,
    HandLoadedReport,
    PodReport,
    ShadowReport,
    VersionReport,
)
from lorafleet_contract.states import ServeState, Tier
from lorafleet_serving.adapters.catalog import CatalogAdapter, CatalogVersion
from lorafleet_serving.pod import Pod


def report(pod: Pod) -> PodReport:
    """Every adapter with the versions that something asks for."""
    facts, pinned = pod.engine.facts, pod.host.pinned
    capacity = {"max_num_seqs": pod.config.engine.max_num_seqs, "disk_bytes": pod.config.fetcher.disk_bytes}
    if facts is not None:
        capacity |= {"kv_blocks": facts.num_kv_blocks, "max_model_len": facts.max_model_len}
    return PodReport(
        pod_id=pod.config.replica_id,
        base_model=pod.config.base_id,
        base_digest=pod.base_digest,
        adapters=tuple(_adapter(pod, item, pinned) for _, item in sorted(pod.catalog.adapters.items())),
        registry_error=None if pod.following is None else pod.following.error,
        synced_at=None if pod.following is None else pod.following.synced_at,
        capacity=capacity,
        loaded_by_hand=tuple(_by_hand(pod, item, pinned) for _, item in sorted(pod.catalog.by_hand.items())),
    )


def report_version(pod: Pod, version: CatalogVersion) -> dict[str, Any]:
    """One version that is ready, as a JSON object."""
    return asdict(_version(pod, version, ServeState.READY, pod.host.pinned))


def parts(pod: Pod) -> dict[str, str]:
    """State of each part, for readiness answers; anybody may read them, so they name no address."""
    engine = "ready" if pod.engine.is_ready else "starting" if pod.engine.is_alive else "down"
    if pod.config.registry is None:
        registry = fetcher = "not used"
    else:
        seen = pod.following is not None and pod.following.synced_at is not None
        is_away = pod.following is not None and pod.following.error is not None
        registry = "away" if is_away else "read" if seen else "not read yet"
        fetcher = "ready" if pod.fetcher.is_ready else "starting"
    return {
        "engine": engine,
        "fetcher": fetcher,
        "registry": registry,
        "adapters": "loaded" if pod.is_caught_up else "loading",
        "keys": _keys(pod),
    }


def _keys(pod: Pod) -> str:
    if pod.key_file is None:
        return "not used"
    return "read" if pod.key_file.error is None else "as they were: the file is wrong now, see the log"


def _adapter(pod: Pod, adapter: CatalogAdapter, pinned: frozenset[str]) -> AdapterReport:
    versions = (adapter.versions[number] for number in sorted(adapter.versions))
    reports = tuple(_version(pod, item, item.state, pinned) for item in versions if item.state is not None)
    return AdapterReport(
        name=adapter.name,
        serving=adapter.serving,
        versions=reports,
        canary=_canary(adapter),
        shadow=_shadow(adapter),
        noticed_at=adapter.noticed_at,
        moved_at=adapter.moved_at,
    )


def _canary(adapter: CatalogAdapter) -> CanaryReport | None:
    canary = adapter.canary
    if canary is None:
        return None
    return CanaryReport(canary.version, canary.share, canary.num_answers, canary.stopped)


def _shadow(adapter: CatalogAdapter) -> ShadowReport | None:
    shadow = adapter.shadow
    if shadow is None:
        return None
    return ShadowReport(shadow.version, shadow.num_answers, shadow.num_same, shadow.num_skipped, shadow.doubt)


def _by_hand(pod: Pod, version: CatalogVersion, pinned: frozenset[str]) -> HandLoadedReport:
    return HandLoadedReport(
        name=version.name,
        address=version.registered.source,
        digest=version.digest,
        tiers=_tiers(pod, version),
        pinned=version.digest in pinned,
        in_flight=pod.host.num_leases(version.digest),
    )


def _tiers(pod: Pod, version: CatalogVersion) -> tuple[Tier, ...]:
    stats = pod.engine.stats
    held = {
        Tier.DEVICE: stats is not None and version.digest in stats.device_adapters,
        Tier.HOST: pod.host.holds(version.digest),
        Tier.DISK: version.digest in pod.fetcher.on_disk,
    }
    return tuple(tier for tier, there in held.items() if there)


def _version(pod: Pod, version: CatalogVersion, state: ServeState, pinned: frozenset[str]) -> VersionReport:
    return VersionReport(
        version=version.registered.version,
        digest=version.digest,
        state=state,
        aliases=version.aliases,
        error=version.error,
        tiers=_tiers(pod, version),
        pinned=version.digest in pinned,
        in_flight=pod.host.num_leases(version.digest),
        asked_at=version.asked_at,
    )
