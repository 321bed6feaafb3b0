"""Reads calls to MLflow's registry interface as changes of an adapter.

Knows paths and bodies of the calls, under both prefixes, and nothing of the web framework or of what
the changes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lorafleet_contract.aliases import Stage
from lorafleet_contract.tags import OWN_PREFIXES
from lorafleet_pipeline.registry.actor import AGENT_HEADER, CONTROLLER_AGENT, How, actor_of
from lorafleet_pipeline.registry.change import AliasChange, Change, StageChange, VersionDeletion

_STAGES = {stage.value.lower(): stage for stage in Stage}


class RegistryCall(NamedTuple):
    """A call that succeeded."""

    method: str
    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    """Names in lower case."""
    user: str | None
    at: float


class Announcement(NamedTuple):
    """The adapter that changed, and how; no change where that must be looked up."""

    name: str
    change: Change | None


def is_ordered(method: str, path: str) -> bool:
    """Whether it matters which of two such calls was made first."""
    return _reader(method, path) not in (None, _something)


def announcement_of(call: RegistryCall) -> Announcement | None:
    """What a call changed; None where it is nothing to the controller, its own calls among it."""
    read = _reader(call.method, call.path)
    name = call.body.get("name")
    if read is None or not isinstance(name, str) or call.headers.get(AGENT_HEADER.lower()) == CONTROLLER_AGENT:
        return None
    if str(call.body.get("key", "")).startswith(OWN_PREFIXES):
        return None
    try:
        return Announcement(name, read(call))
    except (KeyError, TypeError, ValueError):
        return Announcement(name, None)  # Written in a form that we do not read: a look tells what it did.


def _set_alias(call: RegistryCall) -> Change:
    by = actor_of(call.headers, call.user, How.ALIAS)
    return AliasChange(str(call.body["alias"]), int(call.body["version"]), by, call.at)


def _delete_alias(call: RegistryCall) -> Change:
    return AliasChange(str(call.body["alias"]), None, actor_of(call.headers, call.user, How.ALIAS), call.at)


def _transition(call: RegistryCall) -> Change:
    stage = _STAGES[str(call.body["stage"]).lower()]
    archive = call.body.get("archive_existing_versions", call.body.get("archiveExistingVersions", False))
    by = actor_of(call.headers, call.user, How.STAGE)
    return StageChange(int(call.body["version"]), stage, by, call.at, str(archive).lower() == "true")


def _delete_version(call: RegistryCall) -> Change:
    return VersionDeletion(int(call.body["version"]), actor_of(call.headers, call.user, How.ALIAS), call.at)


def _something(call: RegistryCall) -> None:
    return None


_READERS: Mapping[tuple[str, str], Callable[[RegistryCall], Change | None]] = {
    ("POST", "registered-models/alias"): _set_alias,
    ("DELETE", "registered-models/alias"): _delete_alias,
    ("POST", "model-versions/transition-stage"): _transition,
    ("DELETE", "model-versions/delete"): _delete_version,
    ("POST", "model-versions/create"): _something,
    ("POST", "model-versions/set-tag"): _something,
    ("DELETE", "model-versions/delete-tag"): _something,
    ("POST", "registered-models/set-tag"): _something,
    ("DELETE", "registered-models/delete-tag"): _something,
    ("DELETE", "registered-models/delete"): _something,
    ("POST", "registered-models/rename"): _something,
}


def _reader(method: str, path: str) -> Callable[[RegistryCall], Change | None] | None:
    prefix, _, call = path.rpartition("/mlflow/")
    return _READERS.get((method, call)) if prefix.endswith(("/api/2.0", "/ajax-api/2.0")) else None
