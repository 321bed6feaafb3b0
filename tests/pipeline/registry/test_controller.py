"""The controller as a process beside an MLflow server that knows nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.actor import How
from lorafleet_pipeline.registry.controller import Controller, run
from lorafleet_pipeline.registry.sole_instance import sole_instance
from lorafleet_pipeline.settings import PlatformSettings
from tests.conftest import RunningMLflow
from tests.pipeline.registry.fake_pod import FakePod
from tests.pipeline.registry.fleet import Fleet, eventually, fleet_of, settings_of

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
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(settings, stop), kwargs={"interval_s": 0.2})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_changes_are_found_by_looking(managed: Fleet) -> None:
    name = managed.adapter()
    with running(managed.settings):
        managed.set_stage(name, 1, "Production")
        eventually(lambda: managed.aliases(name) == {"champion": 1, "live": 1}, "the stage's champion live")
        managed.set_alias(name, "champion", 3)
        eventually(lambda: managed.aliases(name) == {"champion": 3, "live": 3, "previous": 1}, "the alias live")
        managed.set_stage(name, 2, "Production", archive_existing=True)
        eventually(lambda: managed.aliases(name).get("live") == 2, "the stage live again")
        eventually(lambda: managed.stages(name) == {1: "None", 2: "Production", 3: "None"}, "nothing withdrawn")
    told = [(entry.what, entry.after, entry.how) for entry in managed.audit(name) if entry.what == "champion"]
    assert told == [("champion", "1", How.STAGE), ("champion", "3", How.ALIAS), ("champion", "2", How.STAGE)]


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


def test_registry_that_is_away_at_the_start_is_waited_for(managed: Fleet) -> None:
    name = managed.adapter()
    managed.set_stage(name, 1, "Production")
    stop = threading.Event()
    controller = Controller(replace(managed.settings, mlflow_url="http://127.0.0.1:9"), interval_s=1.0, announced=False)
    thread = threading.Thread(target=controller.run, args=(stop,))
    thread.start()
    with running(replace(managed.settings, home=managed.settings.home / "other")):
        eventually(lambda: managed.aliases(name) == {"champion": 1, "live": 1}, "the other controller's work")
    assert thread.is_alive()
    stop.set()
    thread.join()


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
