"""A service's SQLite file, and what is known about it: whether it was ever whole, and by which version.

A service that is killed while it makes its tables can never start again on what it left. Until the first time
that it was ready nobody has written there, so such a file is discarded.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServiceDatabase:
    """The database of the service that a distribution provides."""

    file: Path
    distribution: str

    @property
    def url(self) -> str:
        """The address for SQLAlchemy."""
        return f"sqlite:///{self.file}"

    @property
    def needs_migration(self) -> bool:
        """Whether another version than the installed one made or migrated it."""
        return self._stamp.is_file() and self._stamp.read_text() != self._version

    @property
    def is_whole(self) -> bool:
        """Whether it was ever completed."""
        return self._stamp.is_file()

    def discard_unfinished(self) -> None:
        """Delete what an interrupted first start has left."""
        if not self.is_whole:
            for suffix in ("", "-wal", "-shm", "-journal"):
                self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)

    def remember_whole(self) -> None:
        """Note that it is complete, and for which version."""
        self._stamp.write_text(self._version)

    @property
    def _stamp(self) -> Path:
        return self.file.with_suffix(".whole")

    @property
    def _version(self) -> str:
        return importlib.metadata.version(self.distribution)
