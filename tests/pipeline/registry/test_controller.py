"""The controller as a process beside an MLflow server that knows nothing of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.aliases import Stage
from lorafleet_contract.exceptions import RegistryError
from lorafleet_contract.mirror import MirroredModel
from lorafleet_contract.registry import RegistryClient
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.registry.audit import AuditEntry
from lorafleet_pipeline.registry.change import AliasChange, StageChange
from lorafleet_pipeline.registry.controller import Controller, run
from lorafleet_pipeline.registry.pods import PodWatch
from lorafleet_pipeline.registry.sole_instance import sole_instance
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_serving.client import PodClient
from tests.pipeline.registry.fake_pod import ADMIN_TOKEN, FakePod
from tests.pipeline.registry.fleet import Fleet, eventually, fleet_of, in_background, settings_of
from tests.services import RunningMLflow

Beside = Callable[..., Controller]


@pytest.fixture
def managed(mlflow_server: RunningMLflow, tmp_path: Path) -> Iterator[Fleet]:
    """A registry without a controller, and one pod."""
    pod = FakePod()
    with pod.running():
        settings = settings_of(mlflow_server.s3, tmp_path, mlflow_server.url, (pod.url,))
        yield fleet_of(settings, pod, mlflow_server.component)


@pytest.fixture
def beside(managed: Fleet) -> Iterator[Beside]:
    """Makes controllers that do one pass at a time: `beside(pods=...)`."""
    with ExitStack() as closing:

        def make(**changes: Any) -> Controller:
            controller = Controller(replace(managed.settings, **changes), interval_s=1.0, announced=False)
            closing.callback(controller.close)
            return controller

        yield make


@contextmanager
def running(settings: PlatformSettings) -> Iterator[None]:
    with in_background(partial(run, settings, interval_s=0.2)):
        yield


def test_changes_are_found_by_looking(managed: Fleet) -> None:
    name = managed.adapter()
    with running(managed.settings):
        managed.set_stage(name, 1, "Production")
        eventually(lambda: managed.aliases(name) == {"champion": 1, "live": 1}, "the stage's champion live")
        managed.set_alias(name, "champion", 3)
        eventually(lambda: managed.aliases(name) == {"champion": 3, "live": 3, "previous": 1}, "the alias live")
        eventually(lambda: managed.stages(name)[3] == "Production", "the stage after the alias")
        managed.set_stage(name, 2, "Production", archive_existing=True)
        eventually(lambda: managed.aliases(name).get("live") == 2, "the stage live again")
        eventually(lambda: managed.stages(name) == {1: "None", 2: "Production", 3: "None"}, "nothing withdrawn")
    told = [(entry.what, entry.after, entry.how) for entry in managed.audit(name) if entry.what == "champion"]
    assert told == [("champion", "1", How.STAGE), ("champion", "3", How.ALIAS), ("champion", "2", How.STAGE)]


def test_controller_that_is_told_to_stop_writes_and_remembers_what_it_saw(managed: Fleet, beside: Beside) -> None:
    name = managed.adapter()
    with running(managed.settings):
        for version in (1, 2, 3):
            managed.set_alias(name, "champion", version)
            eventually(partial(_is_live, managed, name, version), f"version {version} live")
    log = managed.audit(name)
    assert [entry.after for entry in log if entry.what == "champion"] == ["1", "2", "3"]
    beside().run_once()
    assert managed.audit(name) == log


def test_second_pass_writes_nothing(managed: Fleet, beside: Beside) -> None:
    name = managed.adapter()
    managed.set_stage(name, 2, "Production")
    controller = beside()
    controller.run_once()
    eventually(lambda: managed.pod.report().adapters != (), "the pod told")
    eventually(lambda: controller.run_once() == 0, "a pass with nothing left to write")
    assert managed.aliases(name) == {"champion": 2, "live": 2}
    log = managed.audit(name)
    assert beside().run_once() == 0
    assert managed.audit(name) == log


def test_restarted_controller_knows_what_changed_while_it_was_away(managed: Fleet, beside: Beside) -> None:
    name = managed.adapter()
    managed.set_alias(name, "champion", 2)
    beside().run_once()
    assert managed.stages(name)[2] == "Production"
    managed.set_stage(name, 3, "Production")
    beside().run_once()
    assert managed.aliases(name)["champion"] == 3
    managed.set_alias(name, "champion", 1)
    beside().run_once()
    assert managed.aliases(name)["champion"] == 1


def test_unreachable_audit_log_holds_up_no_promotion_and_loses_no_entry(managed: Fleet) -> None:
    name = managed.adapter()
    blind = replace(managed.settings, s3=replace(managed.settings.s3, endpoint="http://127.0.0.1:9"))
    with running(blind):
        managed.set_alias(name, "champion", 2)
        eventually(lambda: managed.aliases(name) == {"champion": 2, "live": 2}, "champion live")
    assert Tag.CONTROLLER_OBSERVED not in managed.registry.get_model(name).tags
    with running(managed.settings):
        eventually(lambda: Tag.CONTROLLER_OBSERVED in managed.registry.get_model(name).tags, "the log written")
    assert ("champion", "2") in [(entry.what, entry.after) for entry in managed.audit(name)]


def test_adapter_whose_memory_is_refused_again_and_again_holds_up_no_other(
    managed: Fleet, beside: Beside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused, other = sorted((managed.adapter(), managed.adapter()))
    set_model_tag = RegistryClient.set_model_tag

    def refuse(client: RegistryClient, name: str, key: str, value: str) -> None:
        if name == refused:
            raise RegistryError("403: not yours")
        set_model_tag(client, name, key, value)

    monkeypatch.setattr(RegistryClient, "set_model_tag", refuse)
    controller = beside()
    managed.set_alias(refused, "champion", 1)
    for version in (1, 2, 3):
        managed.set_alias(other, "champion", version)
        controller.run_once()
        assert managed.stages(other)[version] == "Production"
    assert f"{refused} could not be brought in order" in caplog.text
    caplog.clear()
    controller.run_once()
    assert "could not be brought in order" not in caplog.text, "what lasts is told again and again"


def test_what_it_wrote_itself_is_no_news_to_it_however_the_registrys_clock_goes(
    managed: Fleet, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = managed.adapter()
    managed.set_alias(name, "champion", 1)
    controller = beside()
    controller.run_once()
    # Nothing that changes from now on is dated late enough to be read again.
    monkeypatch.setattr(RegistryClient, "search_changed_versions", lambda *_: [])
    managed.set_alias(name, "champion", 2)
    for _ in range(2):
        controller.run_once()
    assert managed.aliases(name)["champion"] == 2
    assert managed.stages(name) == {1: "None", 2: "Production", 3: "None"}


def _is_live(managed: Fleet, name: str, version: int) -> bool:
    return managed.aliases(name).get("live") == version


def _is_live_after_a_pass(managed: Fleet, controller: Controller, name: str, version: int) -> bool:
    controller.run_once()
    return _is_live(managed, name, version)


def test_memory_of_a_model_does_not_pass_to_another_of_its_name(managed: Fleet, beside: Beside) -> None:
    name = managed.adapter()
    controller = beside()
    for version in (2, 3):
        managed.set_alias(name, "champion", version)
        eventually(partial(_is_live_after_a_pass, managed, controller, name, version), f"version {version} live")
    assert managed.aliases(name) == {"champion": 3, "live": 3, "previous": 2}
    managed.mlflow.delete_registered_model(name)
    managed.adapter(name=name)
    managed.set_alias(name, "champion", 1)
    controller.run_once()
    assert {alias: number for alias, number in managed.aliases(name).items() if number != 1} == {}


def test_model_of_others_whose_name_cannot_be_searched_for_holds_nobody_up(managed: Fleet, beside: Beside) -> None:
    managed.mlflow.create_registered_model("somebody's")
    name = managed.adapter()
    controller = beside()
    controller.run_once()
    controller._leads.set()
    controller.announce("somebody's", None)
    controller.announce(name, None)
    managed.set_alias(name, "champion", 1)
    controller._look(controller._next(0.0))
    assert managed.stages(name)[1] == "Production"
    managed.mlflow.delete_registered_model("somebody's")


def test_edited_memory_is_written_anew(managed: Fleet, beside: Beside) -> None:
    name = managed.adapter()
    managed.set_alias(name, "champion", 2)
    beside().run_once()
    managed.registry.set_model_tag(name, Tag.CONTROLLER_OBSERVED, "no memory")
    beside().run_once()
    assert managed.registry.get_model(name).tags[Tag.CONTROLLER_OBSERVED].startswith('{"serial"')
    assert managed.aliases(name)["champion"] == 2


def test_pod_that_is_down_holds_live_back_and_is_named(managed: Fleet, beside: Beside) -> None:
    name = managed.adapter()
    managed.set_alias(name, "champion", 1)
    managed.pod.sync(name)
    controller = beside(pods=(*managed.settings.pods, "http://127.0.0.1:9"))
    controller.run_once()
    assert managed.aliases(name) == {"champion": 1}
    assert managed.tags(name, 1)[Tag.SERVE_STATE] == "loading"
    assert "http://127.0.0.1:9 does not answer" in managed.tags(name, 1)[Tag.SERVE_ERROR]


def test_second_instance_waits_for_the_first(tmp_path: Path) -> None:
    path, stop, first = tmp_path / "lock", threading.Event(), threading.Event()
    order: list[str] = []

    def second() -> None:
        with sole_instance(path, stop) as alone:
            order.append(f"second {alone}")

    with sole_instance(path, first) as alone:
        order.append(f"first {alone}")
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first ends")
    thread.join()
    assert order == ["first True", "first ends", "second True"]
    with sole_instance(path, first):
        stop.set()
        with sole_instance(path, stop) as alone:
            assert not alone


def test_changes_announced_to_one_that_waits_are_not_made_again_when_it_takes_over(
    managed: Fleet, beside: Beside
) -> None:
    name = managed.adapter()
    waiting = beside()
    managed.set_alias(name, "champion", 3)
    waiting.announce(name, AliasChange("champion", 3, Actor(None, How.ALIAS), 1.0))
    leading = beside()
    leading.run_once()
    managed.set_alias(name, "champion", 2)
    leading.run_once()
    waiting.run_once()
    assert managed.aliases(name)["champion"] == 2


def test_move_made_while_the_registry_is_read_is_explained_by_its_announcement(
    managed: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast an adapter is moved: who moved it is told, move by move, and nothing waits for an end of it."""
    name = managed.adapter()
    controller = Controller(managed.settings, interval_s=1.0, announced=True)
    controller._leads.set()
    look, versions = controller._mirror.look, iter((1, 2, 3, 1))

    def look_while_it_moves() -> list[MirroredModel]:
        for version in islice(versions, 1):
            managed.set_alias(name, "champion", version)
            controller.announce(name, AliasChange("champion", version, Actor("ann", How.CLI), time.time()))
        return look()

    monkeypatch.setattr(controller._mirror, "look", look_while_it_moves)
    for _ in range(2):
        controller.run_once()
    told = [(entry.after, entry.who) for entry in managed.audit(name) if entry.what == "champion"]
    controller.run_once()
    controller.close()
    assert told[:3] == [("1", "ann"), ("2", "ann"), ("3", "ann")]
    assert managed.stages(name) == {1: "Production", 2: "None", 3: "None"}


def test_what_is_known_to_be_overtaken_is_not_written(managed: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage is seen, and the alias that was set after it, too late to be seen, is announced by then."""
    name = managed.adapter()
    managed.set_alias(name, "champion", 1)
    controller = Controller(managed.settings, interval_s=1.0, announced=True)
    controller._leads.set()
    controller.announce(name, AliasChange("champion", 1, Actor("ann", How.CLI), time.time()))
    controller.run_once()
    controller.run_once()
    look, ann = controller._mirror.look, Actor("ann", How.CLI)
    written: list[str] = []
    set_alias = controller._client.set_alias

    def set_and_note(name: str, alias: str, version: int) -> None:
        written.append(alias)
        set_alias(name, alias, version)

    monkeypatch.setattr(controller._client, "set_alias", set_and_note)

    def look_while_it_moves() -> list[MirroredModel]:
        managed.set_stage(name, 2, "Production")
        found = look()
        managed.set_alias(name, "champion", 3)
        controller.announce(name, StageChange(2, Stage.PRODUCTION, ann, time.time()))
        controller.announce(name, AliasChange("champion", 3, ann, time.time()))
        monkeypatch.setattr(controller._mirror, "look", look)
        return found

    monkeypatch.setattr(controller._mirror, "look", look_while_it_moves)
    controller._look(None)
    monkeypatch.undo()
    assert "champion" not in written
    controller.run_once()
    controller.run_once()
    controller.close()
    assert managed.aliases(name)["champion"] == 3
    assert managed.stages(name) == {1: "None", 2: "None", 3: "Production"}
    told = [(entry.after, entry.how, entry.who) for entry in managed.audit(name) if entry.what == "champion"]
    assert told == [("1", How.CLI, "ann"), ("2", How.CLI, "ann"), ("3", How.CLI, "ann")]


def test_an_end_remembers_what_it_journaled_and_decides_nothing(
    managed: Fleet, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is served just as the controller ends: that is for the next one to find, and to journal."""
    name = managed.adapter()
    controller, stop = Controller(managed.settings, interval_s=60.0, announced=False), threading.Event()
    append, held = controller._audit._log.append, threading.Event()

    def append_late(entry: AuditEntry) -> None:
        assert held.wait(60)
        append(entry)

    monkeypatch.setattr(controller._audit._log, "append", append_late)
    close = controller.close

    def close_while_a_version_is_served() -> None:
        managed.pod.loading.clear()
        managed.pod.sync(name)
        controller._pods.ask()
        held.set()
        close()

    monkeypatch.setattr(controller, "close", close_while_a_version_is_served)
    managed.pod.loading.add((name, 1))
    managed.set_alias(name, "champion", 1)
    work = threading.Thread(target=controller.run, args=(stop,))
    work.start()
    eventually(lambda: name in controller._unremembered, "the champion seen")
    stop.set()
    work.join()
    assert managed.aliases(name) == {"champion": 1}
    assert [(entry.what, entry.after) for entry in managed.audit(name)] == [("champion", "1")]
    follower = beside()
    for _ in range(3):
        follower.run_once()
    assert managed.aliases(name) == {"champion": 1, "live": 1}
    assert [(entry.what, entry.after) for entry in managed.audit(name)] == [("champion", "1"), ("live", "1")]


def test_an_announced_tag_of_a_champion_is_read_at_once(
    managed: Fleet, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafleet_contract.mirror._OVERLAP_MS", 0)  # As if the version was made long ago.
    name = managed.adapter()
    digest = managed.tags(name, 1)[Tag.LORA_DIGEST]
    managed.mlflow.delete_model_version_tag(name, "1", Tag.LORA_DIGEST)
    managed.set_alias(name, "champion", 1)
    controller = beside()
    controller.run_once()
    assert managed.aliases(name) == {"champion": 1}
    managed.registry.set_version_tag(name, 1, Tag.LORA_DIGEST, digest)
    managed.pod.sync(name)
    controller._pods.ask()
    controller._look({name})
    assert managed.aliases(name)["live"] == 1


def test_report_that_cannot_be_read_is_no_word_on_what_the_pod_serves(
    managed: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PodClient(managed.pod.url, ADMIN_TOKEN) as client:
        watch = PodWatch(client, lambda names: None)
        watch.ask()
        assert watch.state.error is None
        monkeypatch.setattr(client, "report", lambda: 1 / 0)
        watch.start()
        eventually(lambda: watch.state.error is not None, "the fault noted")
        watch.stop()
    assert "ZeroDivisionError" in str(watch.state.error)
