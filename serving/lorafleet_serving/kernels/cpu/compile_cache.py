"""Where compiled operators are kept between starts, so that only the first one compiles."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

_SOURCES = Path(__file__).parent.parent


def cache_folder(sources: Path = _SOURCES) -> Path:
    """A folder of this user's, made if it is not there; where none can be written, a new one for this process.

    What is kept is loaded as code, so a folder that others can write to is never taken. Each state of the sources has
    its own: numba looks only whether the file of an operator is what it was, and not at what the operator calls, which
    is compiled into it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = root.expanduser() / "lorafleet" / "compiled" / _digest(sources)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no home is known.
        pass
    return Path(tempfile.mkdtemp(prefix="lorafleet-compiled-"))


def _digest(sources: Path) -> str:
    hashed = hashlib.sha256()
    for file in sorted(sources.rglob("*.py")):
        hashed.update(f"{file.relative_to(sources)}\0".encode())
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()[:16]
