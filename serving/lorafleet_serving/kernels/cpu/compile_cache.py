"""Where compiled operators are kept between starts, so that only the first one compiles."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """A folder of this user's, made if it is not there; where none can be written, a new one for this process.

    What is kept is loaded as code, so a folder that others can write to is never taken.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = root.expanduser() / "lorafleet" / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no home is known.
        pass
    return Path(tempfile.mkdtemp(prefix="lorafleet-compiled-"))
