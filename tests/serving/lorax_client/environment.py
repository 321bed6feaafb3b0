"""A virtual environment with LoRAX's client, made once and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def lorax_client_python() -> Path:
    """Python of the environment; the first call on a machine makes it, from the package registry alone."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet-tests"
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache / f"lorax-client-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            # By one rename at the end: an interrupted making leaves nothing that looks whole.
            scrap = folder.with_suffix(".part")
            shutil.rmtree(scrap, ignore_errors=True)
            venv.create(scrap, with_pip=True)
            command: list[str | Path] = [
                scrap / "bin" / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--requirement",
                REQUIREMENTS,
            ]
            subprocess.run(command, check=True)
            scrap.rename(folder)
    return folder / "bin" / "python"
