from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from lorafleet_contract.digest import (
    adapter_digest,
    base_digest,
    bytes_digest,
    canonical_json,
    document_digest,
    files_digest,
    is_digest,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_digest_is_sha256_by_name() -> None:
    assert bytes_digest(b"x") == f"sha256:{hashlib.sha256(b'x').hexdigest()}"


@settings(max_examples=50, deadline=None)
@given(document=st.dictionaries(st.text(), JSON, max_size=5))
def test_document_digest_ignores_key_order_and_survives_json(document: dict[str, object]) -> None:
    turned = dict(reversed(document.items()))
    assert document_digest(turned) == document_digest(document)
    assert document_digest(json.loads(canonical_json(document))) == document_digest(document)


def test_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        document_digest({"loss": float("nan")})


def _adapter(folder: Path, config: bytes = b"{}", weights: bytes = b"w") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_adapter_digest_follows_config_and_weights_alone(tmp_path: Path) -> None:
    digest = adapter_digest(_adapter(tmp_path / "a"))
    other = _adapter(tmp_path / "b")
    (other / "README.md").write_text("no part of it")
    assert adapter_digest(other) == digest
    assert adapter_digest(_adapter(tmp_path / "c", config=b"{ }")) != digest
    assert adapter_digest(_adapter(tmp_path / "d", weights=b"W")) != digest


def test_bytes_cannot_move_across_the_border_of_two_files(tmp_path: Path) -> None:
    first = adapter_digest(_adapter(tmp_path / "a", config=b"{}x", weights=b"y"))
    assert adapter_digest(_adapter(tmp_path / "b", config=b"{}", weights=b"xy")) != first


def test_missing_file_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files_digest(tmp_path, ["config.json"])


def test_base_digest_is_remembered_until_a_file_changes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digest = base_digest(tmp_path)
    remembered = tmp_path / ".lorafleet-digest.json"
    assert json.loads(remembered.read_text())["digest"] == digest
    remembered.write_text(remembered.read_text().replace(digest, "sha256:remembered"))
    assert base_digest(tmp_path) == "sha256:remembered"
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert base_digest(tmp_path) not in {digest, "sha256:remembered"}
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert base_digest(tmp_path) == digest


@pytest.mark.parametrize("damage", ["", '{"files": [', "[]", '{"files": []}'])
def test_a_damaged_note_of_the_base_digest_is_written_again(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    digest = base_digest(tmp_path)
    note = tmp_path / ".lorafleet-digest.json"
    note.write_text(damage)
    assert base_digest(tmp_path) == digest
    assert json.loads(note.read_text())["digest"] == digest
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", note.name}


def test_a_base_model_on_a_read_only_file_system_has_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    digest = base_digest(tmp_path)
    (tmp_path / ".lorafleet-digest.json").unlink()

    def refuse(path: Path, text: str) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert base_digest(tmp_path) == digest


def test_a_digest_is_known_by_its_form() -> None:
    assert is_digest(bytes_digest(b"x"))
    for text in ("", "sha256:", "sha256:" + "g" * 64, "sha256:" + "a" * 65, "../" + "a" * 68):
        assert not is_digest(text)
