"""Messages between the front process and the fetcher process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafleet_contract.states import Tier
from lorafleet_serving.adapters.merge_recipe import MergeRecipe
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, NoRoom


@dataclass(frozen=True)
class FetchOrder:
    """Bring one version's files to the disk tier and verify them."""

    order_id: int
    name: str
    version: int
    digest: str
    """What the registry says the adapter's digest is."""
    base_digest: str
    address: str
    """Where the version's artifacts are: `s3://bucket/key`."""
    refused_stamp: str | None = None
    """Stamp of the artifacts that were refused before: only others are worth another look."""
    at_hand: bool = False
    """Whether what an earlier order left on disk will do: S3 is asked only where there is nothing."""


@dataclass(frozen=True)
class HandOrder:
    """Bring an adapter to the disk tier that somebody loads by hand, and verify what can be verified without a gate."""

    order_id: int
    name: str
    address: str
    """Where its files are, themselves or in the folder `adapter`."""
    base_names: tuple[str, ...]
    """What its config may call the pod's base; empty takes any."""
    digest: str | None = None
    """What its files were found to be before; None at the first time."""


@dataclass(frozen=True)
class MergeOrder:
    """Merge adapters of the disk tier into one more."""

    order_id: int
    recipe: MergeRecipe


@dataclass(frozen=True)
class KeepAdapters:
    """The digests that leave the disk tier last."""

    digests: frozenset[str]


@dataclass(frozen=True)
class DistrustAdapter:
    """An adapter's files on disk may have gone bad: hash them again before they are next used."""

    digest: str


@dataclass(frozen=True)
class StopFetcher:
    """Exit."""


Order = FetchOrder | HandOrder | MergeOrder
FetcherCommand = Order | KeepAdapters | DistrustAdapter | StopFetcher


@dataclass(frozen=True)
class DiskUsage:
    """How full the disk tier is, and how many adapters have left it for others since the fetcher began."""

    num_bytes: int = 0
    num_evictions: int = 0


@dataclass(frozen=True)
class FetcherReady:
    """The fetcher takes orders. Tells what an earlier process left on disk."""

    digests: frozenset[str]
    usage: DiskUsage


@dataclass(frozen=True)
class Fetched:
    """A version stands verified on disk."""

    order_id: int
    folder: str
    num_elements: int
    """Of all tensors together."""
    manifest: Mapping[str, Any]
    stamp: str
    """Changes when one of the version's artifacts does; empty when S3 was away."""
    source: str = Tier.DISK
    """Where its weights came from: the scheme of their address, or the disk tier, where they were already."""
    download_s: float = 0.0


@dataclass(frozen=True)
class HandFetched:
    """An adapter that is loaded by hand stands on disk."""

    order_id: int
    folder: str
    num_elements: int
    digest: str
    """Of its files, as they were found."""


@dataclass(frozen=True)
class Merged:
    """A merged adapter stands on disk."""

    order_id: int
    folder: str
    num_elements: int


@dataclass(frozen=True)
class FetchUnchanged:
    """The artifacts are still those that were refused."""

    order_id: int


@dataclass(frozen=True)
class NotFetched:
    """What was ordered must not be served as it is, or could not be had for a reason that may pass."""

    order_id: int
    error: AdapterRefusal | FetchFailed | NoRoom


@dataclass(frozen=True)
class DiskChanged:
    """What the disk tier holds now."""

    digests: frozenset[str]
    usage: DiskUsage


FetchResult = Fetched | FetchUnchanged | NotFetched
FetcherEvent = FetcherReady | DiskChanged | FetchResult | HandFetched | Merged
