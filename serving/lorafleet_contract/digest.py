"""Content digests: the identity of adapters, base models, datasets and documents.

A digest is written `sha256:<hex>`. Files enter it by name, length and content, so that two files
can never trade bytes across their border unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)

_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BASE_CACHE_FILE = ".lorafleet-digest.json"


def is_digest(text: str) -> bool:
    """Whether a text has the form of a digest."""
    return _DIGEST.fullmatch(text) is not None


def bytes_digest(data: bytes) -> str:
    """Digest of one byte string."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def document_digest(document: Mapping[str, Any]) -> str:
    """Digest of a JSON document, independent of key order and spacing."""
    return bytes_digest(canonical_json(document))


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """The one byte form of a JSON document that digests and signatures are made over."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def files_digest(folder: Path, names: Iterable[str]) -> str:
    """Digest over the named files of a folder.

    Raises:
        FileNotFoundError: one of them does not exist.
    """
    sha = hashlib.sha256()
    for name in names:
        path = folder / name
        sha.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"


def adapter_digest(folder: Path) -> str:
    """Digest over an adapter's config and weights: the identity under which it is served."""
    return files_digest(folder, ADAPTER_FILES)


def base_digest(folder: Path) -> str:
    """Digest over a base model's config and weights, remembered beside them while they are unchanged."""
    names = ["config.json", *sorted(path.name for path in folder.glob("*.safetensors"))]
    stamp = [[name, (folder / name).stat().st_size, (folder / name).stat().st_mtime_ns] for name in names]
    cache = folder / _BASE_CACHE_FILE
    known = _read_cache(cache)
    if known.get("files") == stamp:
        return str(known["digest"])
    digest = files_digest(folder, names)
    # By one rename: the front and the engine of a pod, and other pods, read it at the same time.
    scrap = cache.with_name(f"{_BASE_CACHE_FILE}.{os.getpid()}")
    try:
        scrap.write_text(json.dumps({"files": stamp, "digest": digest}))
        scrap.replace(cache)
    except OSError:
        # A read-only model folder is normal in a container; it costs a second at each start.
        with suppress(OSError):
            scrap.unlink()
    return digest


def _read_cache(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}  # Not there yet, or cut off by a full disk: the digest is computed again.
    return known if isinstance(known, dict) and "digest" in known else {}
