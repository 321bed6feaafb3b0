"""A file that only its owner may read, replaced whole."""

from __future__ import annotations

import os
from pathlib import Path

_MODE = 0o600


def write_private(path: Path, text: str) -> None:
    """Replace a file; at no moment may another user read it, or a reader see half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
