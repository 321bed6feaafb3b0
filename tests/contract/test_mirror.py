"""A copy of a real registry sees what changed, and reads little for it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.exceptions import RegistryUnavailable
from lorafleet_contract.mirror import MirroredModel, RegistryMirror
from lorafleet_contract.registry import ModelVersion, RegistryClient, RegistryEndpoint
from tests.services import RunningMLflow

NEVER_S = 3600.0


class CountingClient(RegistryClient):
    """Counts the versions it was sent, by how they were asked for; can be cut off."""

    def __init__(self, endpoint: RegistryEndpoint) -> None:
        super().__init__(endpoint)
        self.num_searched = self.num_changed = self.num_got = 0
        self.cut_off = False

    def search_versions(self, name: str | None = None) -> list[ModelVersion]:
        found = super().search_versions(name)
        self.num_searched += len(found)
        return found

    def search_changed_versions(self, since: int, name: str | None = None) -> list[ModelVersion]:
        if self.cut_off:
            raise RegistryUnavailable("cut off")
        found = super().search_changed_versions(since, name)
        self.num_changed += len(found)
        return found

    def get_version(self, name: str, version: int) -> ModelVersion:
        self.num_got += 1
        return super().get_version(name, version)


@dataclass
class Shelf:
    """One registered model of a real registry, and mirrors of it."""

    mlflow: MlflowClient
    client: CountingClient
    name: str = field(default_factory=lambda: f"adapter-{uuid4().hex[:8]}")

    def add(self) -> int:
        source = f"s3://mlflow/{uuid4().hex}"
        return int(self.mlflow.create_model_version(self.name, source=source, tags={"made": "here"}).version)

    def mirror(self, full_interval_s: float = NEVER_S) -> RegistryMirror:
        mirror = RegistryMirror(self.client, full_interval_s)
        mirror.look()
        return mirror

    def look(self, mirror: RegistryMirror) -> MirroredModel:
        (found,) = [item for item in mirror.look() if item.model.name == self.name]
        return found


@pytest.fixture
def shelf(mlflow_server: RunningMLflow) -> Iterator[Shelf]:
    mlflow = MlflowClient(mlflow_server.url)
    shelf = Shelf(mlflow, CountingClient(RegistryEndpoint(mlflow_server.url)))
    mlflow.create_registered_model(shelf.name)
    yield shelf
    if mlflow.search_registered_models(f"name='{shelf.name}'"):
        mlflow.delete_registered_model(shelf.name)


def test_a_second_look_reads_no_version_that_did_not_change(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_contract.mirror._OVERLAP_MS", -1)
    numbers = [shelf.add() for _ in range(3)]
    mirror = shelf.mirror()
    searched = shelf.client.num_searched
    assert set(shelf.look(mirror).versions) == set(numbers)
    assert shelf.client.num_changed == 0
    assert shelf.client.num_searched == searched


def test_a_look_sees_new_versions_and_moved_stages(shelf: Shelf) -> None:
    first = shelf.add()
    mirror = shelf.mirror()
    searched, second = shelf.client.num_searched, shelf.add()
    assert set(shelf.look(mirror).versions) == {first, second}
    shelf.client.transition_stage(shelf.name, first, Stage.PRODUCTION)
    assert shelf.look(mirror).versions[first].stage is Stage.PRODUCTION
    shelf.client.transition_stage(shelf.name, second, Stage.PRODUCTION, archive_existing=True)
    assert [shelf.look(mirror).versions[number].stage for number in (first, second)] == [
        Stage.ARCHIVED,
        Stage.PRODUCTION,
    ]
    assert shelf.client.num_searched == searched


def test_no_look_sees_half_of_a_promotion_that_archives_another_version(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shelf.add(), shelf.add()
    shelf.client.transition_stage(shelf.name, first, Stage.PRODUCTION)
    mirror = shelf.mirror()
    shelf.client.set_alias(shelf.name, Alias.LIVE, first)  # So that the look reads this version by itself.

    def get_after_promotion(name: str, version: int) -> ModelVersion:
        monkeypatch.undo()
        shelf.client.transition_stage(name, second, Stage.PRODUCTION, archive_existing=True)
        return shelf.client.get_version(name, version)

    monkeypatch.setattr(shelf.client, "get_version", get_after_promotion)
    stages = {number: item.stage for number, item in shelf.look(mirror).versions.items()}
    assert stages == {first: Stage.ARCHIVED, second: Stage.PRODUCTION}


def test_more_changes_than_a_page_holds_are_all_seen(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_contract.registry._CHANGES_PAGE_SIZE", 2)
    mirror = shelf.mirror()
    numbers = {shelf.add() for _ in range(5)}
    assert set(shelf.look(mirror).versions) == numbers


@pytest.mark.parametrize(("ago_s", "is_seen"), [(0.0, True), (9.0, False)])
def test_a_change_is_seen_though_one_dated_later_was_seen_just_before(
    shelf: Shelf, ago_s: float, is_seen: bool
) -> None:
    old = shelf.add()
    mirror = shelf.mirror()
    newest = shelf.client.transition_stage(shelf.name, old, Stage.STAGING).updated_at
    mirror._newest, mirror._newest_seen = newest + 5000, time.monotonic() - ago_s
    assert (shelf.look(mirror).versions[old].stage is Stage.STAGING) is is_seen


def test_a_version_dated_ahead_hides_no_change(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_contract.mirror._OVERLAP_MS", -1)
    old = shelf.add()
    mirror = shelf.mirror()
    mirror._note_newest(round(time.time() * 1000) + 3_600_000)
    moved = shelf.client.transition_stage(shelf.name, old, Stage.STAGING)
    assert mirror._newest <= moved.updated_at
    assert shelf.look(mirror).versions[old].stage is Stage.STAGING


def test_an_aliased_version_that_a_full_look_missed_is_read_all_the_same(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = shelf.add()
    shelf.client.set_alias(shelf.name, Alias.LIVE, version)
    # As where versions before it are deleted between two pages.
    monkeypatch.setattr(shelf.client, "search_versions", lambda: [])
    assert set(shelf.look(RegistryMirror(shelf.client, NEVER_S)).versions) == {version}


def test_a_deleted_version_that_had_an_alias_is_forgotten_at_the_next_look(shelf: Shelf) -> None:
    kept, deleted = shelf.add(), shelf.add()
    shelf.client.set_alias(shelf.name, Alias.LIVE, deleted)
    mirror = shelf.mirror()
    shelf.mlflow.delete_model_version(shelf.name, str(deleted))
    assert set(shelf.look(mirror).versions) == {kept}


def test_an_alias_is_looked_up_again_where_its_version_could_not_be_read(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = shelf.add()
    mirror = shelf.mirror()
    shelf.client.set_version_tag(shelf.name, version, "gate.status", "waived")
    shelf.client.set_alias(shelf.name, Alias.CHAMPION, version)
    with monkeypatch.context() as broken:
        broken.setattr(shelf.client, "get_version", _away)
        with pytest.raises(RegistryUnavailable):
            mirror.read_model(shelf.name)
    assert "gate.status" in shelf.look(mirror).versions[version].tags


def _away(*_: object) -> ModelVersion:
    raise RegistryUnavailable("cut off")


def test_a_version_is_read_anew_when_an_alias_comes_to_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_contract.mirror._OVERLAP_MS", -1)
    version = shelf.add()
    mirror = shelf.mirror()
    shelf.client.set_version_tag(shelf.name, version, "gate.status", "waived")
    assert "gate.status" not in shelf.look(mirror).versions[version].tags
    shelf.client.set_alias(shelf.name, Alias.CHAMPION, version)
    seen = shelf.look(mirror)
    assert seen.model.aliases == {"champion": version}
    assert seen.versions[version].tags == {"made": "here", "gate.status": "waived"}
    got = shelf.client.num_got
    shelf.look(mirror)
    assert shelf.client.num_got == got


@pytest.mark.parametrize(("share", "is_full"), [(math.inf, True), (1e-9, False)])
def test_a_full_look_is_put_off_where_it_takes_long(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, share: float, is_full: bool
) -> None:
    monkeypatch.setattr("lorafleet_contract.mirror._FULL_LOOK_SHARE", share)
    shelf.add()
    mirror = shelf.mirror(full_interval_s=0.0)
    searched = shelf.client.num_searched
    mirror.look()
    assert (shelf.client.num_searched > searched) is is_full


def test_a_full_look_sees_tags_and_deletions(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_contract.mirror._FULL_LOOK_SHARE", math.inf)
    kept, deleted = shelf.add(), shelf.add()
    rarely, always = shelf.mirror(), shelf.mirror(full_interval_s=0.0)
    shelf.client.set_version_tag(shelf.name, kept, "made", "there")
    shelf.mlflow.delete_model_version(shelf.name, str(deleted))
    assert deleted in shelf.look(rarely).versions
    seen = shelf.look(always).versions
    assert set(seen) == {kept}
    assert seen[kept].tags == {"made": "there"}


def test_versions_read_by_number_are_fresh_or_forgotten(shelf: Shelf) -> None:
    kept, deleted = shelf.add(), shelf.add()
    mirror = shelf.mirror()
    shelf.client.set_version_tag(shelf.name, kept, "made", "there")
    shelf.mlflow.delete_model_version(shelf.name, str(deleted))
    mirror.read_versions(shelf.name, {kept, deleted})
    found = mirror.get(shelf.name)
    assert found is not None
    assert {number: item.tags for number, item in found.versions.items()} == {kept: {"made": "there"}}


def test_a_deleted_model_is_forgotten(shelf: Shelf) -> None:
    shelf.add()
    by_look, by_name = shelf.mirror(), shelf.mirror()
    shelf.mlflow.delete_registered_model(shelf.name)
    assert shelf.name not in [item.model.name for item in by_look.look()]
    assert by_name.read_model(shelf.name) is None
    assert (by_look.get(shelf.name), by_name.get(shelf.name)) == (None, None)


def test_a_model_made_again_by_its_name_does_not_inherit_versions(shelf: Shelf) -> None:
    sources = [shelf.client.get_version(shelf.name, shelf.add()).source for _ in range(2)]
    by_look, by_name = shelf.mirror(), shelf.mirror()
    shelf.mlflow.delete_registered_model(shelf.name)
    shelf.mlflow.create_registered_model(shelf.name)
    number = shelf.add()
    by_name.read_model(shelf.name)
    for seen in (shelf.look(by_look), shelf.look(by_name)):
        assert set(seen.versions) == {number}
        assert seen.versions[number].source not in sources


def test_a_tag_noted_by_its_writer_is_known_without_reading(shelf: Shelf) -> None:
    version = shelf.add()
    mirror = shelf.mirror()
    mirror.note_tag(shelf.name, version, "serve.state", "ready")
    mirror.note_tag(shelf.name, version, "made", None)
    mirror.note_tag(shelf.name, version + 1, "serve.state", "ready")  # Deleted meanwhile.
    found = mirror.get(shelf.name)
    assert found is not None
    assert {number: item.tags for number, item in found.versions.items()} == {version: {"serve.state": "ready"}}


def test_a_look_that_fails_halfway_changes_nothing(shelf: Shelf) -> None:
    version = shelf.add()
    mirror = shelf.mirror()
    shelf.client.set_alias(shelf.name, Alias.CHAMPION, version)
    shelf.client.cut_off = True
    with pytest.raises(RegistryUnavailable):
        mirror.look()
    found = mirror.get(shelf.name)
    assert found is not None
    assert found.model.aliases == {}
    shelf.client.cut_off = False
    got = shelf.client.num_got
    assert shelf.look(mirror).model.aliases == {"champion": version}
    assert shelf.client.num_got == got + 1
