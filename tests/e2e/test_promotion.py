"""Promotions on the whole stack: stage and alias through MLflow's own client, and rollback by the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lorafleet_contract.aliases import Alias
from tests.benchmarks.closed_loop import ClosedLoop
from tests.benchmarks.fixed_answers import draw_answers
from tests.benchmarks.versions import MadeVersion, make_versions
from tests.e2e.conftest import ADAPTER, RunningStack
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    # MLflow deprecates stages; the platform supports them, so they are tested.
    pytest.mark.filterwarnings("ignore:.*transition_model_version_stage.*:FutureWarning"),
]


@pytest.fixture
def versions(stack: RunningStack) -> Iterator[list[MadeVersion]]:
    """Two versions that no pod has loaded, each of which says something else."""
    yield make_versions(stack.settings, ADAPTER, stack.demo["version"], draw_answers(2, seed=1))
    stack.settings.registry().set_alias(ADAPTER, Alias.CHAMPION, stack.demo["version"])
    _await_live(stack, stack.demo["version"])


def _serving(stack: RunningStack) -> str:
    return stack.client.complete(model=ADAPTER, prompt="Name: x\nKind:", max_tokens=1).digest


def _await_live(stack: RunningStack, version: int) -> None:
    registry = stack.settings.registry()
    wait_for(lambda: registry.get_model(ADAPTER).aliases.get(Alias.LIVE) == version, f"live = {version}")


def test_moves_by_alias_by_stage_and_back_lose_no_request(stack: RunningStack, versions: list[MadeVersion]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(stack.settings.mlflow_url)
    by_alias, by_stage = versions
    said = {version.digest: version.answer for version in versions}
    loop = ClosedLoop(stack.settings.pods[0], ADAPTER, num_clients=4, answers_of=said)
    with loop.moves.to(_serving(stack)):
        pass  # Where all begin.
    with loop.running():
        with loop.moves.to(by_alias.digest):
            client.set_registered_model_alias(ADAPTER, "champion", str(by_alias.number))
            wait_for(lambda: _serving(stack) == by_alias.digest, "the version that the alias names is served")
        _await_live(stack, by_alias.number)
        with loop.moves.to(by_stage.digest):
            client.transition_model_version_stage(ADAPTER, str(by_stage.number), "Production")
            wait_for(lambda: _serving(stack) == by_stage.digest, "the version in Production is served")
        _await_live(stack, by_stage.number)
        with loop.moves.to(by_alias.digest):
            rolled_back = stack.lorafleet("rollback", ADAPTER, "--json")
            assert rolled_back.returncode == 0, rolled_back.stderr
            assert _serving(stack) == by_alias.digest
    assert loop.num_known > 0
    assert not loop.failures
    assert (loop.mixed, loop.garbled) == (0, 0)


def test_history_tells_who_moved_what(stack: RunningStack) -> None:
    result = stack.lorafleet("history", ADAPTER, "--json")
    assert result.returncode == 0, result.stderr
    assert "champion" in result.stdout
