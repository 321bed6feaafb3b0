"""What must hold before a version is served. Tags can be edited by anyone, so none is believed alone.

The signed gate report binds the adapter's digest and the manifest's digest together; the files are
hashed; the tag must agree with both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from lorafleet_contract.exceptions import InvalidManifest, SignatureInvalid
from lorafleet_contract.manifest import AdapterManifest
from lorafleet_contract.signature import verify
from lorafleet_contract.states import GateStatus
from lorafleet_serving.adapters.lora_config import LoraConfig
from lorafleet_serving.adapters.messages import FetchOrder, HandOrder
from lorafleet_serving.adapters.tensor_header import read_header
from lorafleet_serving.exceptions import AdapterRefusal


def read_document(text: bytes, path: str) -> dict[str, Any]:
    """Parse a JSON object of a version's artifacts.

    Raises:
        AdapterRefusal: it is not a JSON object.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterRefusal(f"{path} is not JSON ({error}): register the version again") from error
    if not isinstance(document, dict):
        raise AdapterRefusal(f"{path} is not a JSON object: register the version again")
    return document


def verify_documents(
    order: FetchOrder, manifest: Mapping[str, Any], report: Mapping[str, Any], *, gate_key: str, max_rank: int
) -> AdapterManifest:
    """Check a version's manifest and gate report against each other and against the registry's tags.

    Raises:
        AdapterRefusal: the version must not be served; says why.
    """
    try:
        verify(report, gate_key)
        described = AdapterManifest.from_json(manifest)
    except (SignatureInvalid, InvalidManifest) as error:
        raise AdapterRefusal(str(error)) from error
    _require_equal("name in the manifest", described.name, "registered model", order.name)
    _require_gate(report)
    _require_equal("digest in the gate report", report.get("digest"), "tag lora.digest", order.digest)
    _require_equal("digest in the manifest", described.digest, "tag lora.digest", order.digest)
    given = report.get("manifest_digest")
    _require_equal("manifest_digest in the gate report", given, "manifest", described.manifest_digest)
    _require_equal("base_digest in the manifest", described.base_digest, "base of this pod", order.base_digest)
    if not 1 <= described.rank <= max_rank:
        raise AdapterRefusal(f"rank is {described.rank}, the pod serves 1 to {max_rank}: raise --max-rank")
    return described


def verify_files(folder: Path, digest: str) -> None:
    """Check downloaded adapter files.

    Raises:
        AdapterRefusal: they are not the files that were evaluated and registered.
    """
    found = adapter_digest(folder)
    if found != digest:
        raise AdapterRefusal(
            f"the adapter's files have digest {found}, the registered one is {digest}: "
            "they are truncated or were changed after registration; upload them again or register a new version"
        )


def verify_by_hand(folder: Path, order: HandOrder, *, max_rank: int) -> str:
    """Check adapter files that nobody registered, as far as they tell by themselves; returns their digest.

    Raises:
        AdapterRefusal: they must not be served, or are others than before.
    """
    digest = adapter_digest(folder)
    if order.digest not in (None, digest):
        raise AdapterRefusal(f"the files at {order.address!r} are {digest} now, loaded was {order.digest}: load again")
    config = LoraConfig.read(folder / CONFIG_FILE)
    rank = max(config.r, *config.rank_pattern.values(), 1)
    if rank > max_rank:
        raise AdapterRefusal(f"rank is {rank}, the pod serves 1 to {max_rank}: raise --max-rank")
    document = read_document((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE)
    told = str(document.get("base_model_name_or_path") or "")
    # Where a base lies differs from machine to machine; what its folder is called seldom does.
    if told and order.base_names and told.rstrip("/").rpartition("/")[2] not in order.base_names:
        raise AdapterRefusal(
            f"the adapter's config names the base {told[:200]!r}, this pod serves {' or '.join(order.base_names)}: "
            "if they are the same, send base_model_name"
        )
    read_header(folder / WEIGHTS_FILE)  # Refuses what is no safetensors, before it takes a place in the tier.
    return digest


def _require_gate(report: Mapping[str, Any]) -> None:
    try:
        status = GateStatus(report.get("status", ""))
    except ValueError as error:
        raise AdapterRefusal(f"the gate report has no known status: {report.get('status')!r}") from error
    if not status.servable:
        raise AdapterRefusal(f"the evaluation gate failed: {report.get('reason') or 'no reason given'}")


def _require_equal(name: str, value: object, other_name: str, other: str) -> None:
    if value != other:
        raise AdapterRefusal(f"{name} is {value}, but that of the {other_name} is {other}: register the version again")
