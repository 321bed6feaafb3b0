"""Writing the trained adapter: the two files that PEFT writes, the same bytes for the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from lorafleet_contract.digest import ADAPTER_FILES, CONFIG_FILE, adapter_digest
from lorafleet_pipeline.exceptions import StorageError

if TYPE_CHECKING:
    from peft import PeftModel


def save_adapter(model: PeftModel, folder: Path) -> str:
    """Write the adapter, whole or not at all; returns its digest."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # Without the flag PEFT asks the hub whether the base's vocabulary was changed.
    try:
        model.save_pretrained(partial, safe_serialization=True, save_embedding_layers=False)
    except SafetensorError as error:
        raise StorageError(f"{partial} could not be written ({error}): free some space there") from error
    for path in partial.iterdir():
        if path.name not in ADAPTER_FILES:
            path.unlink()
    _settle_order(partial / CONFIG_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return adapter_digest(folder)


def _settle_order(config: Path) -> None:
    """Sort the target modules: PEFT keeps them in a set, whose order differs from process to process."""
    content = json.loads(config.read_text())
    content["target_modules"] = sorted(content["target_modules"])
    config.write_text(json.dumps(content, indent=2, sort_keys=True))
