"""Airflow assets of the platform: an adapter's dataset, its versions, and its champion.

Schemes that begin with `x-` are taken by Airflow as they are, with no handler needed.
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import Asset, AssetAny, AssetWatcher

from lorafleet_airflow.settings import REGISTRY_CONN_ID
from lorafleet_airflow.spec_folder import read_spec_folders
from lorafleet_airflow.triggers.registry import RegistryEventTrigger
from lorafleet_pipeline.spec import AdapterSpec

_GROUP = "adapter"


def dataset_asset(spec: AdapterSpec) -> Asset:
    """The training rows of an adapter; whoever writes them reports an event of this asset."""
    address = spec.dataset.train
    uri = address if "://" in address else f"file://{address if address.startswith('/') else '/' + address}"
    # Named by its address alone: adapters trained on the same rows share the asset.
    return Asset(uri=uri, group="dataset")


def versions_asset(name: str) -> Asset:
    """The registered versions of an adapter; the register task reports each."""
    return Asset(uri=f"x-lorafleet://adapters/{name}/versions", name=f"versions of {name}", group=_GROUP)


def champion_asset(name: str, registry_conn_id: str = REGISTRY_CONN_ID, poll_interval_s: float = 5.0) -> Asset:
    """The champion of an adapter; an event is a move of the alias, seen by polling the registry."""
    trigger = RegistryEventTrigger(adapter=name, registry_conn_id=registry_conn_id, poll_interval_s=poll_interval_s)
    return Asset(
        uri=f"x-lorafleet://adapters/{name}/champion",
        name=f"champion of {name}",
        group=_GROUP,
        watchers=[AssetWatcher(name=f"champion of {name}", trigger=trigger)],
    )


def any_champion(*folders: Path) -> AssetAny | None:
    """A schedule: the champion of any adapter that has a spec in the folders; None where there is no spec.

    Adapters registered without a spec have no watcher; the reconciliation covers them.
    """
    names = [item.name for item in read_spec_folders(*folders) if item.spec is not None]
    return AssetAny(*(champion_asset(name) for name in names)) if names else None
