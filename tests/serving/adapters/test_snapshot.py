"""What a pod remembers of the registry, and when it lets go of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.catalog import Catalog, CatalogAdapter, CatalogVersion
from lorafleet_serving.adapters.snapshot import CatalogSnapshot
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion

BASE = "sha256:base"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What one pod has for itself."""
    own = tmp_path / "pods" / "one"
    own.mkdir(parents=True)
    return own


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


def test_live_is_what_serves_next_time(folder: Path) -> None:
    CatalogSnapshot(folder, BASE).save(catalog_of({"champion": 2, "live": 1}, {1, 2}))
    assert remembered(folder) == {"docs": {"live": 1}}
    snapshot, catalog = CatalogSnapshot(folder, BASE), catalog_of({"live": 1}, set())
    catalog.adapters["docs"].versions[1].address = None
    assert snapshot.look().adapters["docs"].versions == {1: registered(1)}
    snapshot.place(catalog)
    assert catalog.adapters["docs"].versions[1].address == "s3://bucket/1"


def test_without_live_what_serves_does(folder: Path) -> None:
    CatalogSnapshot(folder, BASE).save(catalog_of({"champion": 2}, {2}))
    assert remembered(folder) == {"docs": {"live": 2}}


def test_what_only_loads_leaves_what_is_remembered(folder: Path) -> None:
    CatalogSnapshot(folder, BASE).save(catalog_of({"live": 1}, {1}))
    CatalogSnapshot(folder, BASE).save(catalog_of({"live": 2}, set()))
    assert remembered(folder) == {"docs": {"live": 1}}


def test_what_is_withdrawn_or_gone_is_forgotten(folder: Path) -> None:
    snapshot = CatalogSnapshot(folder, BASE)
    snapshot.save(catalog_of({"live": 1}, {1}))
    snapshot.save(catalog_of({"live": 1}, {1}, withdrawn=frozenset({1})))
    assert remembered(folder) == {}
    snapshot.save(catalog_of({"live": 1}, {1}))
    snapshot.save(Catalog())
    assert remembered(folder) == {}


def test_another_base_s_is_not_taken(folder: Path) -> None:
    CatalogSnapshot(folder, BASE).save(catalog_of({"live": 1}, {1}))
    assert remembered(folder, "sha256:other") == {}


@pytest.mark.parametrize("change", [{"name": "../up"}, {"version": "1"}, {"address": None}, {"more": 1}])
def test_what_was_damaged_is_not_taken(folder: Path, change: dict[str, object]) -> None:
    CatalogSnapshot(folder, BASE).save(catalog_of({"live": 1}, {1}))
    path = folder / "catalog.json"
    document = json.loads(path.read_text())
    document["versions"][0] |= change
    path.write_text(json.dumps(document))
    assert remembered(folder) == {}
    path.write_text("{")
    assert remembered(folder) == {}


def test_a_disk_that_cannot_be_written_stops_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = CatalogSnapshot(folder / "missing", BASE)
    snapshot.save(catalog_of({"live": 1}, {1}))
    assert "cannot be written" in caplog.text
    (folder / "missing").mkdir()
    snapshot.save(catalog_of({"live": 1}, {1}))
    assert remembered(folder / "missing") == {"docs": {"live": 1}}


def test_a_pod_without_its_own_begins_with_the_latest_beside_it(folder: Path) -> None:
    older, latest, foreign = (folder.parent / name for name in ("older", "latest", "foreign"))
    for age, (other, aliases, base) in enumerate(
        [(foreign, {"live": 1}, "sha256:other"), (latest, {"live": 2}, BASE), (older, {"live": 3}, BASE)]
    ):
        other.mkdir()
        CatalogSnapshot(other, base).save(catalog_of(aliases, {1, 2, 3}))
        os.utime(other / "catalog.json", (1000 - age, 1000 - age))
    assert remembered(folder) == {"docs": {"live": 2}}
    CatalogSnapshot(folder, BASE).save(catalog_of({"live": 2}, {2}))
    assert (folder / "catalog.json").is_file(), "it has none of its own, since another's says the same"
    CatalogSnapshot(folder, BASE).save(catalog_of({"live": 1}, {1}))
    os.utime(folder / "catalog.json", (1, 1))
    assert remembered(folder) == {"docs": {"live": 1}}
