"""What a pod remembers of the registry, and when it lets go of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.catalog import Catalog, CatalogAdapter, CatalogVersion
from lorafleet_serving.adapters.snapshot import CatalogSnapshot
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion

BASE = "sha256:base"


def registered(version: int, *, withdrawn: bool = False) -> RegisteredVersion:
    return RegisteredVersion("docs", version, f"sha256:{version}", "source", withdrawn, fingerprint="tags")


def catalog_of(aliases: dict[str, int], ready: set[int], *, withdrawn: frozenset[int] = frozenset()) -> Catalog:
    """One adapter of three versions."""
    versions = {number: registered(number, withdrawn=number in withdrawn) for number in (1, 2, 3)}
    adapter = CatalogAdapter("docs", DesiredAdapter("docs", aliases, versions))
    for number, item in versions.items():
        state = ServeState.READY if number in ready else ServeState.LOADING
        adapter.versions[number] = CatalogVersion(item, state=state, address=f"s3://bucket/{number}")
    adapter.move_name()
    catalog = Catalog()
    catalog.adapters["docs"] = adapter
    return catalog


def remembered(folder: Path, base_digest: str = BASE) -> dict[str, dict[str, int]]:
    """Aliases by name, as another start finds them."""
    return {name: dict(item.aliases) for name, item in CatalogSnapshot(folder, base_digest).look().adapters.items()}


def test_live_is_what_serves_next_time(tmp_path: Path) -> None:
    CatalogSnapshot(tmp_path, BASE).save(catalog_of({"champion": 2, "live": 1}, {1, 2}))
    assert remembered(tmp_path) == {"docs": {"live": 1}}
    snapshot, catalog = CatalogSnapshot(tmp_path, BASE), catalog_of({"live": 1}, set())
    catalog.adapters["docs"].versions[1].address = None
    assert snapshot.look().adapters["docs"].versions == {1: registered(1)}
    snapshot.place(catalog)
    assert catalog.adapters["docs"].versions[1].address == "s3://bucket/1"


def test_without_live_what_serves_does(tmp_path: Path) -> None:
    CatalogSnapshot(tmp_path, BASE).save(catalog_of({"champion": 2}, {2}))
    assert remembered(tmp_path) == {"docs": {"live": 2}}


def test_what_only_loads_leaves_what_is_remembered(tmp_path: Path) -> None:
    CatalogSnapshot(tmp_path, BASE).save(catalog_of({"live": 1}, {1}))
    CatalogSnapshot(tmp_path, BASE).save(catalog_of({"live": 2}, set()))
    assert remembered(tmp_path) == {"docs": {"live": 1}}


def test_what_is_withdrawn_or_gone_is_forgotten(tmp_path: Path) -> None:
    snapshot = CatalogSnapshot(tmp_path, BASE)
    snapshot.save(catalog_of({"live": 1}, {1}))
    snapshot.save(catalog_of({"live": 1}, {1}, withdrawn=frozenset({1})))
    assert remembered(tmp_path) == {}
    snapshot.save(catalog_of({"live": 1}, {1}))
    snapshot.save(Catalog())
    assert remembered(tmp_path) == {}


def test_another_base_s_is_not_taken(tmp_path: Path) -> None:
    CatalogSnapshot(tmp_path, BASE).save(catalog_of({"live": 1}, {1}))
    assert remembered(tmp_path, "sha256:other") == {}


@pytest.mark.parametrize("change", [{"name": "../up"}, {"version": "1"}, {"address": None}, {"more": 1}])
def test_what_was_damaged_is_not_taken(tmp_path: Path, change: dict[str, object]) -> None:
    CatalogSnapshot(tmp_path, BASE).save(catalog_of({"live": 1}, {1}))
    path = tmp_path / "catalog.json"
    document = json.loads(path.read_text())
    document["versions"][0] |= change
    path.write_text(json.dumps(document))
    assert remembered(tmp_path) == {}
    path.write_text("{")
    assert remembered(tmp_path) == {}


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = CatalogSnapshot(tmp_path / "missing", BASE)
    snapshot.save(catalog_of({"live": 1}, {1}))
    assert "cannot be written" in caplog.text
    (tmp_path / "missing").mkdir()
    snapshot.save(catalog_of({"live": 1}, {1}))
    assert remembered(tmp_path / "missing") == {"docs": {"live": 1}}
