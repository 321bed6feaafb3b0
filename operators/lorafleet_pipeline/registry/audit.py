"""The audit log: one JSON object per change, written once and never changed.

Entries of one adapter carry a serial number. A controller that died between writing an entry and
remembering it writes the entry again; both have the same id, by which readers see them as one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.storage import Storage


@dataclass(frozen=True)
class AuditEntry:
    """One change of an adapter. `what` is an alias, or `stage:<version>`; `at` is UTC, ISO 8601."""

    id: str
    adapter: str
    serial: int
    at: str
    what: str
    before: str | None
    after: str | None
    how: How
    who: str | None = None

    @classmethod
    def of(
        cls, adapter: str, serial: int, what: str, before: str | None, after: str | None, by: Actor, at: float
    ) -> AuditEntry:
        """An entry with its id."""
        content = json.dumps([adapter, serial, what, before, after])
        identity = f"{serial:08d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        return cls(identity, adapter, serial, stamp, what, before, after, by.how, by.who)

    @property
    def file_name(self) -> str:
        """Name of the entry's object; names sort by time."""
        return f"{datetime.fromisoformat(self.at):%Y%m%dT%H%M%S.%f}-{self.id}.json"

    def to_json(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AuditEntry:
        """Read an entry."""
        return cls(**{**data, "how": How(data["how"])})


class AuditLog:
    """The entries of all adapters, below one address."""

    def __init__(self, storage: Storage, address: str) -> None:
        self._storage = storage
        self._address = address.rstrip("/")

    def append(self, entry: AuditEntry) -> None:
        """Write an entry.

        Raises:
            StorageError: it could not be written.
        """
        body = json.dumps(entry.to_json(), ensure_ascii=False).encode()
        self._storage.write_bytes(f"{self._address}/{entry.adapter}/{entry.file_name}", body)

    def read(self, adapter: str, limit: int | None = None) -> list[AuditEntry]:
        """The newest entries of an adapter, oldest first.

        Raises:
            StorageError: the log cannot be read.
        """
        names = self._storage.list(f"{self._address}/{adapter}")
        chosen = names if limit is None else names[-limit:]
        entries = {entry.id: entry for entry in (self._entry(name) for name in reversed(chosen))}
        return sorted(entries.values(), key=lambda entry: (entry.at, entry.serial))

    def _entry(self, address: str) -> AuditEntry:
        return AuditEntry.from_json(json.loads(self._storage.read_bytes(address)))
