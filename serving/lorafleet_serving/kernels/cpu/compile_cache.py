"""Where compiled operators are kept between starts, so that only the first one compiles."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

_logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent.parent
_NAME = "lorafleet-compiled-"


def cache_folder(sources: Path = _SOURCES) -> Path:
    """A folder of this user's, made if it is not there: in the user's cache, or else among the temporary files.

    What is kept is loaded as code, so a folder that is somebody else's, or open to others, is never taken; where both
    places hold one, it is a new one for this process. Each state of the sources has its own: numba looks only whether
    the file of an operator is what it was, and not at what the operator calls, which is compiled into it.
    """
    state = _digest(sources)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return _own(cache / "lorafleet" / "compiled" / state)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home is known.
        _logger.warning("compiled operators are not kept in the user's cache but among temporary files: %s", error)
    try:
        # Anybody may make this one first, so that it is looked at before what lies in it.
        return _own(_own(Path(tempfile.gettempdir()) / f"{_NAME}{os.getuid()}") / state)
    except OSError as error:
        _logger.warning("compiled operators are not kept for the next start: %s", error)
    folder = tempfile.mkdtemp(prefix=_NAME)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _own(folder: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        OSError: it cannot be made or written, or is not this user's alone.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    if not is_private or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is not a folder that user {os.getuid()} alone can write to: remove it")
    return folder


def _digest(sources: Path) -> str:
    hashed = hashlib.sha256()
    for file in sorted(sources.rglob("*.py")):
        hashed.update(f"{file.relative_to(sources)}\0".encode())
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()[:16]
