"""What happened to an adapter: its audit log, together with where its aliases stand now."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_contract.exceptions import RegistryNotFound
from lorafleet_pipeline.exceptions import PromotionError
from lorafleet_pipeline.registry.actor import How
from lorafleet_pipeline.registry.audit import AuditEntry, AuditLog
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.storage import Storage


@dataclass(frozen=True)
class HistoryEntry:
    """One change. `is_current` says that what it set still stands."""

    at: str
    what: str
    before: str | None
    after: str | None
    how: How
    who: str | None
    is_current: bool


def history(name: str, settings: PlatformSettings, *, limit: int | None = None) -> list[HistoryEntry]:
    """The changes of an adapter, oldest first; `limit` keeps the newest.

    Raises:
        PromotionError: there is no such adapter, and never was.
        StorageError: the audit log cannot be read.
    """
    entries = AuditLog(Storage(settings.s3), settings.audit_url).read(name, limit)
    try:
        aliases = {alias: str(version) for alias, version in settings.registry().get_model(name).aliases.items()}
    except RegistryNotFound as error:
        if not entries:
            raise PromotionError(f"there is no adapter {name!r}: see `lorafleet adapters`") from error
        aliases = {}
    newest = {entry.what: entry.id for entry in entries}
    return [_with_present(entry, newest, aliases) for entry in entries]


def _with_present(entry: AuditEntry, newest: dict[str, str], aliases: dict[str, str]) -> HistoryEntry:
    stands = newest[entry.what] == entry.id and entry.after is not None and aliases.get(entry.what) == entry.after
    return HistoryEntry(entry.at, entry.what, entry.before, entry.after, entry.how, entry.who, stands)
